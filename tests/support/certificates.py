"""Certificates made for a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """PEM files of a certificate and its key, and of the CA that signed it."""

    cert: str
    key: str
    ca: str


class Authority:
    """A CA whose certificates are written under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, file: str = "") -> Pair:
        """A certificate for `name`, in files called `file` (or `name`); written over older ones."""
        made = self._ca.issue_cert(name)
        cert, key = (str(self._folder / f"{file or name}.{kind}.pem") for kind in ("cert", "key"))
        made.private_key_pem.write_to_path(key)
        for number, blob in enumerate(made.cert_chain_pems):
            blob.write_to_path(cert, append=number > 0)
        return Pair(cert, key, self.file)
