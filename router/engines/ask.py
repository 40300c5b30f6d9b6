"""GET with every failure turned into EngineError, and the little of Prometheus' text format that is needed."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import aiohttp
import msgspec

from router.engines.types import EngineError

MAX_ANSWER_BYTES = 8 << 20

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


async def get(session: aiohttp.ClientSession, url: str, path: str) -> bytes | None:
    """The body of a 200 answer; None for 401, 403, 404, 405 and 501 (no such endpoint here). Raises EngineError."""
    try:
        async with session.get(url + path, allow_redirects=False) as response:
            if response.status in (401, 403, 404, 405, 501):
                return None
            if response.status != 200:
                raise EngineError(f"{url}{path} answered HTTP {response.status}")
            body = await response.content.read(MAX_ANSWER_BYTES)
            while not response.content.at_eof():
                piece = await response.content.read(MAX_ANSWER_BYTES)
                if len(body) + len(piece) > MAX_ANSWER_BYTES:
                    raise EngineError(f"{url}{path} answered more than {MAX_ANSWER_BYTES} bytes")
                body += piece
            return body
    except TimeoutError:
        raise EngineError(f"{url}{path} did not answer in time") from None
    except (aiohttp.ClientError, OSError) as error:
        raise EngineError(f"{url}{path}: {error or type(error).__name__}") from None


async def get_json(session: aiohttp.ClientSession, url: str, path: str) -> dict[str, Any] | None:
    """A JSON object, or None where `get` gives None. Raises EngineError for anything else."""
    body = await get(session, url, path)
    if body is None:
        return None
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise EngineError(f"{url}{path} did not answer JSON") from None
    if not isinstance(answer, dict):
        raise EngineError(f"{url}{path} did not answer a JSON object")
    return answer


async def resting(session: aiohttp.ClientSession, url: str, paths: Collection[str]) -> str:
    """ "paused", "sleeping", or empty: what an engine says at /is_paused and /is_sleeping. Raises EngineError."""
    for path in paths:
        answer = await get_json(session, url, path) or {}
        if answer.get("is_paused") is True:
            return "paused"
        if answer.get("is_sleeping") is True:
            return "sleeping"
    return ""


def samples(text: str, wanted: Collection[str]) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of the wanted metrics in a Prometheus text page; malformed lines are passed over."""
    found = []
    for line in text.splitlines():
        if line.startswith("#") or line.split("{", 1)[0].split(" ", 1)[0] not in wanted:
            continue
        match = _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        found.append((match[1], dict(_LABEL.findall(match[2] or "")), value))
    return found


def served_models(
    answer: dict[str, Any] | None, url: str
) -> tuple[tuple[str, ...], tuple[str, ...], list[dict[str, Any]]]:
    """(base model ids, LoRA ids, entries) of a /v1/models answer. Raises EngineError when there is none."""
    entries = [e for e in (answer or {}).get("data") or [] if isinstance(e, dict) and isinstance(e.get("id"), str)]
    base = tuple(e["id"] for e in entries if not e.get("parent"))
    if not base:
        raise EngineError(f"{url}/v1/models lists no model, or wants an API key")
    return base, tuple(e["id"] for e in entries if e.get("parent")), entries


def as_int(value: Any) -> int | None:
    """A positive int from a JSON number or a metric label's text; None for anything else (vLLM says "None")."""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number > 0 else None


def reachable(endpoint: str, url: str) -> str:
    """A publisher's address as seen from here: its wildcard host replaced by the host of the engine's URL."""
    scheme, _, rest = endpoint.partition("://")
    host, colon, port = rest.rpartition(":")
    if scheme != "tcp" or not colon or host not in ("*", "0.0.0.0", "[::]", "::"):
        return endpoint
    engine_host = re.sub(r":\d+$", "", url.split("://", 1)[1].rstrip("/"))
    return f"tcp://{engine_host}:{port}"
