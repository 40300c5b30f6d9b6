"""TLS contexts of both sides: what clients are shown, and how replicas are checked."""

from __future__ import annotations

import ssl
from typing import Any


class TlsError(ValueError):
    """Files that make no TLS context; `setting` is the one at fault (cert_file, key_file, ca_file, client_ca_file)."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


def server_context(cert_file: str, key_file: str, client_ca_file: str | None = None) -> ssl.SSLContext:
    """TLS 1.2 and later, HTTP/1.1. With `client_ca_file` only clients with a certificate of that CA get in (mTLS).

    Raises TlsError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, cert_file, key_file)
    if client_ca_file is not None:
        _load_ca(context, client_ca_file, "client_ca_file")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    *,
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    server_name: str | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """How an https server is checked: against `ca_file` (None: the system's authorities) and its name.

    `cert_file`, `key_file`: shown to a server that asks for a client certificate. `server_name`: the name that is sent
    (SNI) and must be in the certificate instead of the URL's host: pods are reached by address, certificates name a
    service. `verify` False: anybody's certificate will do, so anybody in between can read and change everything.
    Raises TlsError.
    """
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.server_name = server_name
    if ca_file is not None:
        _load_ca(context, ca_file, "ca_file")
    elif verify:
        context.load_default_certs()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert_file is not None:
        _load_pair(context, cert_file, key_file)
    return context


class _NamedContext(ssl.SSLContext):
    """Puts its own name in the place of the address that is connected to, for every HTTP client alike."""

    server_name: str | None = None

    def wrap_bio(self, incoming: Any, outgoing: Any, *args: Any, **settings: Any) -> ssl.SSLObject:
        if self.server_name is not None:
            settings["server_hostname"] = self.server_name
        return super().wrap_bio(incoming, outgoing, *args, **settings)


def _load_pair(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    for setting, path in (("cert_file", cert_file), ("key_file", key_file or cert_file)):
        _readable(path, setting)
    try:
        # A key with a passphrase must not stop the process at a prompt.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except ssl.SSLError as fault:
        raise TlsError(
            "cert_file",
            f"{cert_file} and {key_file or cert_file} are not a PEM certificate and its key ({_why(fault)})",
        ) from None


def _load_ca(context: ssl.SSLContext, path: str, setting: str) -> None:
    _readable(path, setting)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as fault:
        raise TlsError(setting, f"{path} holds no PEM certificates ({_why(fault)})") from None


def _readable(path: str, setting: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123  (only whether it can be)
            pass
    except OSError as fault:
        raise TlsError(setting, f"{path} can't be read: {fault.strerror}") from None


def _why(fault: ssl.SSLError) -> str:
    return fault.reason or str(fault)
