"""A request's body -> what routing needs to know. No I/O.

The engine is the judge of a request: only what no engine accepts is refused here (malformed JSON, a body that is not
an object, messages that are not objects, a prompt of the wrong type); everything else passes and is read leniently.
Engines' servers read JSON with Python's own module, which takes more than JSON (see `python_json`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

import msgspec

from router.blocks import pack
from router.prompt.history import History, skim


class Endpoint(StrEnum):
    """Families of routes whose body says what the prompt is."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    SCORE = "score"
    RERANK = "rerank"
    SCORE_ITEMS = "score_items"
    GENERATE = "generate"
    OTHER = "other"

    __hash__ = str.__hash__  # the enumeration's own is a call of Python


_ENDPOINTS = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETIONS,
    "/v1/responses": Endpoint.RESPONSES,
    "/v1/messages": Endpoint.MESSAGES,
    "/v1/embeddings": Endpoint.EMBEDDINGS,
    "/score": Endpoint.SCORE,
    "/v1/score": Endpoint.SCORE,
    "/generative_scoring": Endpoint.SCORE_ITEMS,
    "/rerank": Endpoint.RERANK,
    "/v1/rerank": Endpoint.RERANK,
    "/v2/rerank": Endpoint.RERANK,
    "/generate": Endpoint.GENERATE,
    "/generate_stream": Endpoint.GENERATE,
}
_MAX_TOKENS = {
    Endpoint.CHAT: ("max_completion_tokens", "max_tokens"),
    Endpoint.RESPONSES: ("max_output_tokens",),
}
GROWING = frozenset({Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.RESPONSES})
_FORM_MODEL = re.compile(
    rb'(?i:\r\ncontent-disposition:[^\r\n]*;[ ]*name)="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n'
)
_FORM_BYTES = 16 * 1024
_LENIENT_BYTES = 4 << 20
_TRUE = frozenset({"true", "1", "yes", "on", "y", "t"})
_FALSE = frozenset({"false", "0", "no", "off", "n", "f"})


_NAMING = frozenset(
    {
        "metadata",
        "previous_response_id",
        "prompt_cache_key",
        "session_id",
        "session_params",
        "user",
        "vllm_xargs",
    }
)
"""Fields that may say which session a request belongs to."""
MAX_SEQUENCES = 1024
"""More than any engine runs for one request; `n` is cut to it in the router's books (the body goes out unchanged)."""


class BadRequest(Exception):
    """A request no engine would accept; the fields of an OpenAI-shaped error."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


class Session(msgspec.Struct, frozen=True, gc=False):
    """What the body says about which session the request belongs to; all optional."""

    user: str | None = None
    prompt_cache_key: str | None = None
    session_id: str | None = None
    previous_response_id: str | None = None
    agentic_context: str | None = None


NO_SESSION = Session()


class ApiRequest(msgspec.Struct, frozen=True, gc=False):
    """A parsed request.

    `prompts`: for completions, embeddings and generate, each text as str or each list of ids packed (see blocks.pack).
    `salt`: `cache_salt`, or SGLang's `extra_key`, or both; part of the chain's root.
    `n`: sequences that are generated for each prompt. `size`: of the body, bytes. `form_model`: of an upload, the model
    that its form seems to name: where it should go, no proof of what the engine will read.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    n: int = 1
    salt: str = ""
    prompts: tuple[str | bytes, ...] = ()
    session: Session = NO_SESSION
    size: int = 0
    form_model: str | None = None


def endpoint_of(path: str) -> Endpoint:
    """The family of a request's path as engines' servers read it: escapes are decoded (a query is ignored)."""
    found = _ENDPOINTS.get(path)
    return _ENDPOINTS.get(unquote(path.partition("?")[0]).rstrip("/"), Endpoint.OTHER) if found is None else found


_decode = msgspec.json.Decoder().decode
_history = History()  # of this process; content-addressed, so it tells nobody anything about another's requests


def limit_messages(max_bytes: int) -> None:
    """Memory for messages that later bodies repeat."""
    _history.max_bytes = max_bytes


def parse_request(path: str, body: bytes, *, read: bool = True) -> ApiRequest:
    """Reads a request's body. Raises BadRequest and nothing else.

    A path of no known family may have any body; what can be read of it is. Without `read` messages and tools are
    checked to be JSON, but stand in the result as empty lists: for those who only pass them on.
    """
    endpoint = endpoint_of(path)
    if endpoint is Endpoint.OTHER:
        return _parse_other(body)
    decode = _decode if endpoint not in GROWING else _history.decode if read else skim
    return _parsed(path, endpoint, _json_object(body, decode), len(body))


def parse_leniently(path: str, body: bytes) -> ApiRequest:
    """`parse_request` for a body that is not JSON, but that engines may take all the same. In any thread."""
    return _parsed(path, endpoint_of(path), _json_object(body, python_json), len(body))


def python_json(body: bytes) -> Any:
    """A body as Python's json module reads it: NaN, infinite numbers, a byte order mark and UTF-16 are taken, too.
    Raises ValueError or RecursionError; the former for lone surrogates, which no tokenizer takes, and for more than
    4 MB: it is slow, and nothing else runs meanwhile."""
    if len(body) > _LENIENT_BYTES:
        raise ValueError
    decoded = json.loads(body)
    if b"\\" in body or not body.isascii():
        json.dumps(decoded, ensure_ascii=False).encode()
    return decoded


def _parsed(path: str, endpoint: Endpoint, decoded: dict[str, Any], size: int) -> ApiRequest:
    messages = decoded.get("messages")
    if endpoint is Endpoint.CHAT or endpoint is Endpoint.MESSAGES:
        _check_messages(messages)
    return ApiRequest(
        endpoint=endpoint,
        body=decoded,
        model=_model(decoded),
        stream=_boolean(decoded, "stream")
        or (endpoint is Endpoint.GENERATE and path.partition("?")[0].endswith("/generate_stream")),
        max_tokens=_max_tokens(endpoint, decoded),
        n=min(MAX_SEQUENCES, max(1, _integer(decoded, "n") or 1)),
        salt=_salt(decoded),
        prompts=_prompts(endpoint, decoded),
        session=_session(decoded),
        size=size,
    )


def warm(body: bytes) -> Iterator[None]:
    """Decode the messages of a body that `parse_request` will be given, a few at a time. Raises nothing."""
    try:
        yield from _history.warm(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        return  # parse_request says what is wrong


def _parse_other(body: bytes) -> ApiRequest:
    """`size` is 0 for what is no JSON object."""
    try:
        decoded = _json_object(body)
        return ApiRequest(Endpoint.OTHER, decoded, _model(decoded), session=_session(decoded), size=len(body))
    except BadRequest:
        return ApiRequest(Endpoint.OTHER, {}, form_model=_form_model(body) if body[:2] == b"--" else None)


def _form_model(body: bytes) -> str | None:
    """Of multipart/form-data. Looked for in front of the file and behind it, not in it."""
    found = _FORM_MODEL.search(body[:_FORM_BYTES]) or _FORM_MODEL.search(body[-_FORM_BYTES:])
    return None if found is None else found[1].decode("utf-8", "replace")


def _json_object(body: bytes, decode: Callable[[bytes], Any] = _decode) -> dict[str, Any]:
    try:
        decoded = decode(body)
    except RecursionError:
        raise BadRequest("The body's JSON is nested too deeply", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        what = str(error) if isinstance(error, msgspec.DecodeError) else "it is not valid UTF-8"
        raise BadRequest(f"The body must be JSON: {what}", code="invalid_json") from None
    if not isinstance(decoded, dict):
        raise BadRequest(f"The body must be a JSON object, not {_kind(decoded)}", code="invalid_json")
    return decoded


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse(name: str, wanted: str, value: object) -> BadRequest:
    code = "invalid_type" if value is not None else "missing_required_parameter"
    return BadRequest(f"'{name}' must be {wanted}, not {_kind(value)}", param=name, code=code)


def _model(body: Mapping[str, Any]) -> str | None:
    model = body.get("model")
    if model is None:
        return None
    if not isinstance(model, str):
        raise _refuse("model", "a string", model)
    if not model:
        raise BadRequest("'model' must not be empty", param="model", code="invalid_value")
    return model


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise _refuse("messages", "an array of messages", messages)
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _refuse(f"messages[{index}]", "an object with a role and content", message)
        if not isinstance(message.get("role"), str):
            raise _refuse(f"messages[{index}].role", "a string", message.get("role"))


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    """Read as pydantic's lax mode does, which all three engines' servers use or exceed."""
    value = body.get(name)
    if value is None or value is False or value is True:
        return value is True
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise _refuse(name, "a boolean", value)


def _integer(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, dict | list):
        raise _refuse(name, "an integer", value)
    try:
        return int(value)
    except (ValueError, OverflowError):
        raise _refuse(name, "an integer", value) from None


def _max_tokens(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    if endpoint is Endpoint.GENERATE:
        for group in ("sampling_params", "parameters"):
            settings = body.get(group)
            if isinstance(settings, dict):
                return _integer(settings, "max_new_tokens")
        return None
    for name in _MAX_TOKENS.get(endpoint, ("max_tokens",)):
        value = _integer(body, name)
        if value is not None:
            return value
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _salt(body: Mapping[str, Any]) -> str:
    salt = body.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        raise _refuse("cache_salt", "a string", salt)
    return (salt or "") + (_text(body.get("extra_key")) or "")


def _prompts(endpoint: Endpoint, body: Mapping[str, Any]) -> tuple[str | bytes, ...]:
    if endpoint is Endpoint.COMPLETIONS:
        if body.get("prompt") is None and body.get("prompt_embeds") is not None:
            return ()
        return _inputs("prompt", body.get("prompt"))
    if endpoint is Endpoint.EMBEDDINGS:
        if body.get("input") is None and isinstance(body.get("messages"), list):
            return ()
        if isinstance(body.get("input"), list) and any(isinstance(item, dict) for item in body["input"]):
            return ()
        return _inputs("input", body.get("input"))
    if endpoint is Endpoint.GENERATE:
        for name in ("input_ids", "text", "inputs"):
            if body.get(name) is not None:
                return _inputs(name, body[name])
        if body.get("input_embeds") is None:
            raise _refuse("text", "a string", None)
    return ()


def _inputs(name: str, value: object) -> tuple[str | bytes, ...]:
    """A text, a list of texts, a list of ids, or a list of lists of ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise _refuse(name, "a string, an array of strings, or an array of token ids", value)
    if not value:
        raise BadRequest(f"'{name}' must not be empty", param=name, code="invalid_value")
    if isinstance(value[0], int):
        return (_packed(name, value),)
    found: list[str | bytes] = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            found.append(_packed(f"{name}[{index}]", item))
        else:
            raise _refuse(f"{name}[{index}]", "a string or an array of token ids", item)
    return tuple(found)


def _packed(name: str, ids: list[Any]) -> bytes:
    try:
        return pack(ids)
    except (TypeError, OverflowError):
        raise BadRequest(f"'{name}' must hold token ids, integers from 0 on", param=name, code="invalid_type") from None


def _session(body: Mapping[str, Any]) -> Session:
    if _NAMING.isdisjoint(body):
        return NO_SESSION
    arguments = body.get("vllm_xargs")
    extra: Mapping[str, Any] = arguments if isinstance(arguments, dict) else {}
    metadata = body.get("metadata")
    open_session = body.get("session_params")
    in_metadata = _text(metadata.get("user_id")) if isinstance(metadata, dict) else None
    opened = _text(open_session.get("id")) if isinstance(open_session, dict) else None
    context = extra.get("agentic_context")
    if context is not None and not isinstance(context, str):
        context = msgspec.json.encode(context, order="sorted").decode()
    return Session(
        user=_text(body.get("user")) or in_metadata,
        prompt_cache_key=_text(body.get("prompt_cache_key")),
        session_id=_text(body.get("session_id")) or opened or _text(extra.get("session_id")),
        previous_response_id=_text(body.get("previous_response_id")),
        agentic_context=_text(context),
    )
