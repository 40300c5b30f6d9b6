"""A URL and a few settings -> a Store.

| URL                                            | server                                                        |
|------------------------------------------------|---------------------------------------------------------------|
| redis://[user[:password]@]host[:6379][/db]      | one server, or any node of a cluster with `cluster=True`       |
| rediss://...                                    | the same over TLS                                              |
| unix://[user[:password]@]/path/to.sock[?db=0]   | a Unix socket                                                  |
| redis+sentinel://host:26379,host2/service[/db]  | the primary that the sentinels name; rediss+sentinel:// for TLS|

A password comes from the URL, or better from `password_file` or `password_env`, so that it stays out of the
configuration. The file is read again for each new connection: a rotated password needs no restart. Timeouts are
explicit and nothing is retried (redis-py's own default runs one slow script ten times).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from router.index.redis.store import Client, Store

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379


class RedisConfigError(ValueError):
    """A setting that cannot work; the message names it and the fix."""


def connect(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    cluster: bool = False,
    timeout_s: float = 1.0,
    connect_timeout_s: float = 1.0,
    max_connections: int = 32,
) -> Store:
    """No I/O but reading the password file: connections are made by the first call. Raises RedisConfigError."""
    parts = _split(url)
    if timeout_s <= 0 or connect_timeout_s <= 0:
        raise RedisConfigError(f"redis timeouts must be above 0, got {timeout_s} and {connect_timeout_s}")
    tls = parts.scheme.startswith("rediss")
    if not tls and (ca_file or cert_file or key_file):
        raise RedisConfigError(f"redis ca_file, cert_file and key_file need a rediss:// url, not {parts.scheme}://")
    if key_file and not cert_file:
        raise RedisConfigError("redis key_file is set without cert_file; set both")
    user = username or (unquote(parts.username) if parts.username else None)
    secret = _password(parts, password, password_file, password_env)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "socket_read_size": 256 * 1024,
        "health_check_interval": 15,
        "protocol": 2,
        "max_connections": max_connections,
    }
    if password_file:
        options["credential_provider"] = _FilePassword(user, Path(password_file))
    else:
        options |= {"username": user, "password": secret}
    if tls:
        for name, path in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
            if path and not Path(path).is_file():
                raise RedisConfigError(f"redis {name}: no such file: {path}")
        tls_options = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file or cert_file}
        options |= {"ssl": True, **{name: path for name, path in tls_options.items() if path}}
    if cluster:
        return Store(_cluster(parts, options), timeout_s=timeout_s)
    options["retry"] = Retry(NoBackoff(), 0)
    if parts.scheme.endswith("sentinel"):
        return Store(_sentinel(parts, options), timeout_s=timeout_s)
    if parts.scheme == "unix":
        if not parts.path:
            raise RedisConfigError(f"redis url {_shown(parts)} names no socket; write unix:///path/to.sock")
        database = _database(parse_qs(parts.query).get("db", ["0"])[0])
        return Store(_client(Redis(unix_socket_path=unquote(parts.path), db=database, **options)), timeout_s=timeout_s)
    host, port = _address(parts)
    client = Redis(host=host, port=port, db=_database(parts.path.strip("/") or "0"), **options)
    return Store(_client(client), timeout_s=timeout_s)


class _FilePassword(CredentialProvider):
    """The password is read for each connection; a file that cannot be read counts as refused credentials."""

    def __init__(self, username: str | None, path: Path) -> None:
        self._username, self._path = username, path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = _read(self._path)
        except OSError as error:
            raise AuthenticationError(f"password_file cannot be read: {error}") from error
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _read(path: Path) -> str:
    return path.read_text("utf-8").rstrip("\r\n")


def _client(client: object) -> Client:
    return cast("Client", client)


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise RedisConfigError(f"redis url has scheme {parts.scheme!r}; write one of {', '.join(SCHEMES)}://")
    return parts


def _shown(parts: SplitResult) -> str:
    """The URL without its credentials."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _address(parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RedisConfigError(f"redis url {_shown(parts)}: {error}") from error
    if not host:
        raise RedisConfigError(f"redis url {_shown(parts)} names no host; write {parts.scheme}://host:6379")
    return host, port or 6379


def _database(text: str) -> int:
    if not text.isdecimal():
        raise RedisConfigError(f"redis url: the database must be a number, got {text!r}")
    return int(text)


def _password(parts: SplitResult, given: str | None, file: str | None, env: str | None) -> str | None:
    if file:
        try:
            return _read(Path(file))
        except OSError as error:
            raise RedisConfigError(f"redis password_file cannot be read: {error}") from error
    if env:
        if env not in os.environ:
            raise RedisConfigError(f"redis password_env names {env}, which is not set")
        return os.environ[env]
    return given or (unquote(parts.password) if parts.password else None)


def _cluster(parts: SplitResult, options: dict[str, Any]) -> Client:
    if parts.scheme not in ("redis", "rediss"):
        raise RedisConfigError(f"redis cluster mode needs a redis:// or rediss:// url, not {parts.scheme}://")
    if parts.path.strip("/") not in ("", "0"):
        raise RedisConfigError("redis cluster mode has only database 0; leave the database out of the url")
    host, port = _address(parts)
    # One attempt more, to follow a MOVED answer after slots changed hands: the command did not run before it.
    return _client(RedisCluster(host=host, port=port, cluster_error_retry_attempts=1, **options))


def _sentinel(parts: SplitResult, options: dict[str, Any]) -> Client:
    service, _, database = parts.path.strip("/").partition("/")
    hosts = [host for host in parts.netloc.rpartition("@")[2].split(",") if host]
    if not service or not hosts:
        raise RedisConfigError(f"redis url {_shown(parts)}: write {parts.scheme}://host:26379,host2:26379/service")
    sentinels = []
    for host in hosts:
        name, colon, port = host.rpartition(":")
        if colon and not port.isdecimal():
            raise RedisConfigError(f"redis url {_shown(parts)}: {host!r} is no host:port")
        sentinels.append((name, int(port)) if colon else (host, SENTINEL_PORT))
    keep = ("socket_timeout", "socket_connect_timeout", "ssl", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "retry")
    sentinel_options = {name: options[name] for name in keep if name in options}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        sentinels, sentinel_kwargs=sentinel_options, **options
    )
    return _client(sentinel.master_for(service, db=_database(database or "0")))
