"""What the configuration refers to and other files or the environment hold: certificates, keys, tokens.

Read whole before anything is changed, at the start and at every reload: one bad file refuses the lot.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from router.api.keys import KeyEntry, KeysError, parse_keys
from router.config.load import ConfigError
from router.config.model import Config, ReplicaTls, Tls
from router.http.errors import Headers
from router.http.tls import TlsError, client_context, server_context
from router.proxy.headers import HeaderRules


@dataclass(frozen=True, slots=True)
class Credentials:
    """`keys`: None without API keys. `admin_token`: None if nothing may be changed. `files`: everything read here."""

    listen_tls: ssl.SSLContext | None
    admin_tls: ssl.SSLContext | None
    admin_token: str | None
    replica_tls: ssl.SSLContext
    replica_key: str | None
    keys: list[KeyEntry] | None
    files: tuple[Path, ...]
    marks: Mapping[str, bytes]
    """For `listen`, `admin` and `replicas`: a digest of what their TLS and keys are made of, to see changes by."""

    @classmethod
    def read(cls, config: Config, env: Mapping[str, str] | None = None) -> Credentials:
        """Everything, or ConfigError with the key at fault."""
        env = os.environ if env is None else env
        out = config.proxy.tls
        try:
            replica_tls = client_context(
                ca_file=out.ca_file,
                cert_file=out.cert_file,
                key_file=out.key_file,
                server_name=out.server_name,
                verify=out.verify,
            )
        except TlsError as error:
            raise ConfigError(f"proxy.tls.{error.setting}: {error}") from None
        proxy, admin = config.proxy, config.admin
        inward = [tls for tls in (config.listen.tls, admin.tls) if tls is not None]
        names = [
            *(name for tls in inward for name in (tls.cert_file, tls.key_file, tls.client_ca_file)),
            *(out.ca_file, out.cert_file, out.key_file),
            *(proxy.api_key_file, admin.token_file, config.keys.file),
        ]
        return cls(
            listen_tls=_server("listen.tls", config.listen.tls),
            admin_tls=_server("admin.tls", admin.tls),
            admin_token=_secret("admin.token", admin.token_file, admin.token_env, env),
            replica_tls=replica_tls,
            replica_key=_secret("proxy.api_key", proxy.api_key_file, proxy.api_key_env, env),
            keys=_keys(config, env),
            marks={
                "listen": _mark(config.listen.tls, ()),
                "admin": _mark(admin.tls, ()),
                "replicas": _mark(out, (proxy.api_key_file, proxy.api_key_env)),
            },
            files=tuple(Path(name) for name in dict.fromkeys(names) if name is not None),
        )

    def header_rules(self, config: Config) -> HeaderRules:
        """Which of a client's headers a replica sees."""
        dropped: set[bytes] = set()
        prefixes: tuple[bytes, ...] = ()
        added: Headers = []
        if not config.proxy.trust_client_routing:
            dropped.add(b"x-data-parallel-rank")
            prefixes = (b"x-override-",)
        if self.keys is not None:
            dropped |= {b"authorization", b"x-api-key"}
            if self.replica_key is not None:
                added = [(b"authorization", b"Bearer " + self.replica_key.encode())]
        return HeaderRules(frozenset(dropped), prefixes, added)

    def session(self, timeout: aiohttp.ClientTimeout | None = None) -> aiohttp.ClientSession:
        """A client for asking engines about themselves: their certificate checked, their key sent along."""
        headers = {"authorization": f"Bearer {self.replica_key}"} if self.replica_key is not None else None
        connector = aiohttp.TCPConnector(limit=0, ssl=self.replica_tls)
        return aiohttp.ClientSession(
            timeout=timeout or aiohttp.ClientTimeout(total=60), connector=connector, headers=headers
        )


def _server(key: str, tls: Tls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    try:
        return server_context(tls.cert_file, tls.key_file, tls.client_ca_file)
    except TlsError as error:
        raise ConfigError(f"{key}.{error.setting}: {error}") from None


def _mark(tls: Tls | ReplicaTls | None, others: Sequence[str | None]) -> bytes:
    digest = hashlib.sha256(msgspec.json.encode((tls, others)))
    named = [] if tls is None else [value for value in msgspec.structs.astuple(tls) if isinstance(value, str)]
    for name in (*named, *(other for other in others if other is not None)):
        with contextlib.suppress(OSError):
            digest.update(Path(name).read_bytes())
    return digest.digest()


def _secret(key: str, file: str | None, variable: str | None, env: Mapping[str, str]) -> str | None:
    if file is not None and variable is not None:
        raise ConfigError(f"{key}_file, {key}_env: give one of them, not both.")
    if file is not None:
        return _usable(f"{key}_file", file, _text(f"{key}_file", file))
    if variable is not None:
        if variable not in env:
            raise ConfigError(f"{key}_env: the environment variable {variable} is not set.")
        return _usable(f"{key}_env", variable, env[variable])
    return None


def _usable(key: str, where: str, text: str) -> str:
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{key}: {where} must hold one line of printable ASCII without blanks.")
    return text


def _text(key: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key}: {file} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {file} is not UTF-8 text.") from None


def _keys(config: Config, env: Mapping[str, str]) -> list[KeyEntry] | None:
    keys = config.keys
    found: list[KeyEntry] = []
    texts: list[tuple[str, str, str]] = []
    if keys.file is not None:
        texts.append(("keys.file", keys.file, _text("keys.file", keys.file)))
    if keys.env is not None:
        if keys.env not in env:
            raise ConfigError(f"keys.env: the environment variable {keys.env} is not set.")
        texts.append(("keys.env", keys.env, env[keys.env]))
    for key, where, text in texts:
        try:
            found = parse_keys(text, env, before=found)
        except KeysError as error:
            raise ConfigError(f"{key}: {where}: {error}") from None
    return found if texts else None
