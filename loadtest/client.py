"""One request over HTTP: sends a step, reads the answer (stream or not), measures, and never raises for a bad answer.

Streams are server-sent events: `data: {json}` lines, the last one `data: [DONE]`. Content is any of
`choices[].delta.{content, reasoning_content, reasoning, tool_calls}` or `choices[].text`; `usage` comes in a last chunk
with empty `choices` (`stream_options.include_usage`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from loadtest.record import RequestRecord
from loadtest.types import Step

IDLE_CONNECTION_S = 4.0
"""Engines close idle connections after 5 s; a connection reused at that moment would look like a server error."""
DETAIL_CHARS = 200


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    delta: Delta | None = None
    text: Any = None


class Answer(msgspec.Struct):
    """A stream's chunk or a whole answer; fields that are not measured are skipped by the decoder."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Answer).decode


class Client:
    """Sends requests to one OpenAI endpoint. An async context manager; one per run, shared by all its sessions.

    base_url: up to, not including, `/v1`. extra: added to every body (over the workload's own fields).
    replica_header: which response header names the replica (other routers have other names for it).
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        stream: bool = True,
        timeout_s: float = 600.0,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        replica_header: str = "x-prefix-router-replica",
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._stream = stream
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._extra = dict(extra or {})
        self._replica_header = replica_header
        self._clock = clock
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S)
        self._http = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    def body(self, step: Step) -> bytes:
        body: dict[str, Any] = {"model": self._model, **step.prompt.body(), "max_tokens": step.max_tokens}
        if self._stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return msgspec.json.encode({**body, **self._extra})

    async def send(self, step: Step, record: RequestRecord, headers: Mapping[str, str] | None = None) -> None:
        """Send one step and fill in `record`; any failure ends up in its `error` and `detail`."""
        if self._http is None:
            raise RuntimeError("Client must be entered with `async with` before it can send")
        body = self.body(step)
        url = self._base_url + step.prompt.endpoint
        began = self._clock()
        try:
            async with self._http.post(url, data=body, headers={**self._headers, **(headers or {})}) as response:
                self._receipt(response, record)
                if response.status >= 400:
                    text = (await response.content.read(4096)).decode(errors="replace")
                    fail(record, f"http_{response.status}", text)
                elif self._stream:
                    await self._read_stream(response.content, began, record)
                else:
                    read_answer(await response.read(), record)
                    record.e2el_s = self._clock() - began
        except TimeoutError:
            fail(record, "timeout", f"no complete answer within {self._timeout.total} s")
        except aiohttp.ClientConnectorError as error:
            fail(record, "connect", f"no connection to {self._base_url}: {error.os_error}")
        except (aiohttp.ClientError, ConnectionError) as error:
            fail(record, "disconnected", str(error) or type(error).__name__)

    async def _read_stream(self, content: aiohttp.StreamReader, began: float, record: RequestRecord) -> None:
        clock = self._clock
        first: float | None = None
        last = began
        tail = b""
        done = False
        async for data in content.iter_any():
            now = clock()
            lines = (tail + data).split(b"\n")
            tail = lines.pop()
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    done = True
                elif read_answer(payload, record):
                    if first is None:
                        first = now
                        record.ttft_s = now - began
                    else:
                        record.itl_s.append(now - last)
                    last = now
        record.e2el_s = clock() - began
        if first is not None:
            record.decode_s = last - first
        if not done:
            fail(record, "truncated", "the stream ended without [DONE]")

    def _receipt(self, response: aiohttp.ClientResponse, record: RequestRecord) -> None:
        headers = response.headers
        record.status = response.status
        record.replica = headers.get(self._replica_header)
        record.reason = headers.get("x-prefix-router-reason")
        record.matched_tokens = whole(headers.get("x-prefix-router-matched-tokens"))
        record.routed_tokens = whole(headers.get("x-prefix-router-prompt-tokens"))


def read_answer(payload: bytes, record: RequestRecord) -> bool:
    """Take usage and errors from one chunk or answer; True if it carries content."""
    try:
        answer = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        fail(record, "bad_answer", f"{error}: {payload[:80].decode(errors='replace')}")
        return False
    if answer.error is not None:
        fail(record, "stream_error", str(answer.error))
    usage = answer.usage
    if usage is not None:
        record.prompt_tokens = usage.prompt_tokens
        record.output_tokens = usage.completion_tokens
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
    for choice in answer.choices or ():
        delta = choice.delta
        if choice.text or (
            delta is not None and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)
        ):
            return True
    return False


def fail(record: RequestRecord, kind: str, detail: str) -> None:
    """Note an error; the first one stands."""
    if record.error is None:
        record.error = kind
        record.detail = detail[:DETAIL_CHARS]


def whole(value: str | None) -> int | None:
    """A header's whole number; None where it is absent or says something else."""
    try:
        return int(value) if value is not None else None
    except ValueError:
        return None


async def served_models(base_url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> list[str]:
    """Model ids of `GET /v1/models`. Raises ConnectionError saying what is wrong with the endpoint."""
    url = base_url.rstrip("/") + "/v1/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as http,
            http.get(url, headers=headers) as response,
        ):
            data = await response.read()
            if response.status != 200:
                raise ConnectionError(
                    f"GET {url} answered {response.status}: {data[:DETAIL_CHARS].decode('utf-8', 'replace')}"
                )
            return [str(model["id"]) for model in msgspec.json.decode(data)["data"]]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConnectionError(
            f"no answer from {url}: {error or type(error).__name__}; is the router running?"
        ) from None
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ConnectionError(f"GET {url} is not an OpenAI model list: {error!r}") from None
