"""Request -> token ids -> block chain: the prompt stage.

A step of a growing conversation costs its new text: pieces of text are encoded once (tokenizer), chunks of ids hashed
once (chains). Text not seen before is encoded in a thread when it is long, so that the event loop goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import msgspec

from router.blocks import TOKEN_BYTES, root
from router.prompt.approximate import CHUNK_BLOCKS, approximate_root, canonical_text
from router.prompt.chains import ChainCache
from router.prompt.conversation import Inexact
from router.prompt.model import ChatModel
from router.prompt.prepare import Part, parts_of
from router.prompt.requests import GROWING, ApiRequest, BadRequest, endpoint_of, parse_leniently, parse_request, warm
from router.prompt.vocabulary import check_ids

# A body from this size on takes a millisecond or more to parse, to render, to cut: others run between these steps, and
# the steps of several such requests are taken in turns of the loop of their own.
LONG_BYTES = 128 * 1024
_LONG_CHARS = 256 * 1024  # a text from this size on takes milliseconds to cut where special tokens are close together
_MANY_MESSAGES = 400  # that take 4 ms to convert and to render when they are new
_MANY_VALUES = 5000  # that take so long to measure, and half a millisecond to count
UNREAD = "unread"
_MANY = 256  # prompts whose ids take half a millisecond to look through
_BLOCKS_AT_ONCE = 4096  # about 1 ms of hashing


class UnknownModel(Exception):
    """No replica serves this model."""

    def __init__(self, model: str | None) -> None:
        super().__init__(f"The model {model!r} does not exist" if model else "'model' is missing")
        self.model = model


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """How a served name's prompts are prepared.

    `name`: canonical name, or the LoRA adapter's, as engines report it in their events: the chain's namespace.
    `model`: tokenizer and template; None if there are no files (approximate keys).
    `default_template_kwargs`: the server's; `exclude_tools_when_none`: vLLM's flag of that name.
    `content_format`: the server's `--chat-template-content-format` unless "auto".
    `max_model_len`: tokens, for requests that ask to be truncated to the model's limit.
    `inexact`: set while the ids may not be trusted (a failed comparison with the engine, an encoder of its own).
    `adapter`: it is a LoRA adapter's.
    `by_engine`: engine kind -> spec, for kinds that read the model's files in another way.
    """

    name: str
    model: ChatModel | None
    block_size: int = 16
    default_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    content_format: str = "auto"
    exclude_tools_when_none: bool = False
    max_model_len: int | None = None
    inexact: str | None = None
    adapter: bool = False
    by_engine: Mapping[str, ModelSpec] = field(default_factory=dict)


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What routing gets to know of a prompt.

    `tokens`: length of the prompt, of all prompts of a list together; a quarter of the text's bytes if not `exact`.
    `chain`: hashes of the (first) prompt's full blocks of `block_size` tokens: the model's, or of text. `ids`: the
    first prompt's ids, packed; None if unknown.
    `reason`: why the chain is approximate, a short slug; None if exact; UNREAD: nobody asked for a chain.
    """

    tokens: int
    chain: list[int]
    block_size: int
    exact: bool
    reason: str | None = None
    ids: bytes | None = None

    @property
    def read(self) -> bool:
        """Whether more is known of it than its length, roughly."""
        return self.reason != UNREAD

    @property
    def told(self) -> str:
        """How it is known, for receipts and records."""
        return "exact" if self.exact else f"approximate; {self.reason}" if self.read else UNREAD

    @property
    def hittable_blocks(self) -> int:
        """Blocks an engine can at most take from its cache: the last token is always computed."""
        return max(0, (self.tokens - 1) // self.block_size)


def unread(request: ApiRequest) -> Prompt:
    """What stands for a prompt under a policy that does not look at it: a quarter of the body's bytes as its length."""
    return Prompt(request.size // TOKEN_BYTES, [], 1, False, UNREAD)


class EngineIds(Protocol):
    """Asks an engine for a request's ids (render or tokenize endpoint); cached and time-boxed by its owner.

    Returns them packed, or None if it doesn't know. `engine`: the kind. `reason`: why they can't be reproduced here.
    """

    async def __call__(self, request: ApiRequest, spec: ModelSpec, engine: str, reason: str) -> bytes | None: ...


class Took:
    """Seconds that each stage of a request took, by name; waiting for the loop counts with the stage it interrupts."""

    __slots__ = ("_since", "seconds")

    def __init__(self) -> None:
        self._since = perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap was this stage's."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


class PromptStage:
    """Prepares prompts. One per event loop; bounded by its caches' sizes."""

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        *,
        default_model: str | None = None,
        engine_ids: EngineIds | None = None,
        chain_chunks: int = 1 << 15,
        threads: int = 2,
    ) -> None:
        """`models`: served name, alias or adapter -> spec; looked at on each request, so it may change meanwhile.

        `default_model`: for requests that name none. `threads`: for long new texts.
        """
        self._models = models
        self._default_model = default_model
        self._engine_ids = engine_ids
        self._chains = ChainCache(chain_chunks)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """Ends the threads; texts being encoded are finished first."""
        self._pool.shutdown()

    def spec(self, model: str | None) -> ModelSpec:
        """The spec for a request's model. Raises UnknownModel."""
        name = model if model is not None else self._default_model
        spec = self._models.get(name) if name is not None else None
        if spec is None:
            raise UnknownModel(model)
        return spec

    async def parse(self, path: str, body: bytes, *, read: bool = True) -> ApiRequest:
        """`requests.parse_request`, or else `parse_leniently`, without holding up the loop. Raises BadRequest."""
        try:
            if len(body) <= LONG_BYTES:
                return parse_request(path, body, read=read)
            if read and endpoint_of(path) in GROWING:  # these share their messages: for the loop's thread alone
                await self._own_turn()
                for _ in warm(body):
                    await self._own_turn()
                return parse_request(path, body)
            parse = partial(parse_request, path, body, read=read)
            return await asyncio.get_running_loop().run_in_executor(self._pool, parse)
        except BadRequest as bad:
            if bad.code != "invalid_json":
                raise
            strictly = bad
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, parse_leniently, path, body)
        except BadRequest as bad:
            raise (strictly if bad.code == "invalid_json" else bad) from None

    async def check_ids(self, request: ApiRequest, model: str | None) -> None:
        """Raises BadRequest for a token id that the model doesn't have, if that is known."""
        spec = self._models.get(model or self._default_model or "")
        size = None if spec is None or spec.model is None else spec.model.ids
        if request.size <= LONG_BYTES or len(request.prompts) < _MANY:
            check_ids(request, size)
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, check_ids, request, size)

    async def _own_turn(self) -> None:
        """Others run first; and no two callers go on in the same turn of the loop."""
        async with self._turn:
            await asyncio.sleep(0)

    async def prepare(
        self, request: ApiRequest, *, engine: str = "vllm", tenant: str = "", took: Took | None = None
    ) -> Prompt:
        """Ids and chain as an engine of this kind ("vllm", "sglang", "tgi") will have them.

        What can't be reproduced gets approximate keys, with the reason. Of a list of prompts the first one's chain is
        given: engines cache each on its own, and replicas are chosen for the whole request. `took` gets the time of
        each stage. Raises UnknownModel.
        """
        took = Took() if took is None else took
        spec = self.spec(request.model)
        spec = spec.by_engine.get(engine, spec)
        lora = request.body.get("lora_path") if engine == "sglang" and not spec.adapter else None
        if isinstance(lora, str) and lora:
            spec = replace(spec, name=lora, adapter=True)
        elif lora:
            spec = replace(spec, inexact="lora-path")  # one for each prompt of a list
        if request.size > LONG_BYTES:
            await self._own_turn()
        start = root(spec.name, block_size=spec.block_size, salt=request.salt, tenant=tenant)
        try:
            first, tokens, reason = await self._ids(request, spec, engine, took)
        except Inexact as inexact:
            return await self._fallback(request, spec, start, engine, inexact.reason, took)
        chain = await self._chain(start, first, spec.block_size)
        took.lap("hash")
        return Prompt(tokens, chain, spec.block_size, reason is None, reason, first)

    async def _ids(
        self, request: ApiRequest, spec: ModelSpec, engine: str, took: Took
    ) -> tuple[bytes, int, str | None]:
        if spec.inexact is not None:
            raise Inexact(spec.inexact)
        try:
            if _elaborate(request):
                render = partial(parts_of, request, spec, engine, aside=True)
                plan = await asyncio.get_running_loop().run_in_executor(self._pool, render)
            else:
                plan = parts_of(request, spec, engine)
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError):
            raise Inexact("malformed-request") from None  # the engine will say what is wrong with it
        finally:
            took.lap("render")
        first = b""
        tokens = 0
        for position, prompt in enumerate(plan.prompts):
            if position % 16 == 15:
                await asyncio.sleep(0)  # a list of thousands of prompts must not hold up the loop
            packed = [part if isinstance(part, bytes) else await self._encode(part, spec) for part in prompt]
            ids = plan.cut(b"".join(packed))
            tokens += len(ids) // TOKEN_BYTES
            first = ids if position == 0 else first
        took.lap("tokenize")
        return first, tokens, plan.reason

    async def _encode(self, part: Part, spec: ModelSpec) -> bytes:
        assert spec.model is not None
        tokenizer = spec.model.tokenizer
        if len(part.text) > LONG_BYTES:
            await self._own_turn()
        try:
            if len(part.text) > _LONG_CHARS:
                encode = partial(tokenizer.encode, part.text, part.add_special_tokens)
                ids = await asyncio.get_running_loop().run_in_executor(self._pool, encode)
                return ids[TOKEN_BYTES:] if part.drop_first and ids.startswith(part.drop_first) else ids
            encoding = tokenizer.begin(part.text, part.add_special_tokens)
            if encoding.missing_chars > tokenizer.inline_chars:
                await asyncio.get_running_loop().run_in_executor(self._pool, tokenizer.fill, encoding)
            elif encoding.missing:
                tokenizer.fill(encoding)
        except UnicodeEncodeError:
            raise Inexact("lone-surrogate") from None
        ids = tokenizer.finish(encoding)
        return ids[TOKEN_BYTES:] if part.drop_first and ids.startswith(part.drop_first) else ids

    async def _chain(self, start: int, ids: bytes, block_size: int) -> list[int]:
        hashes: list[int] = []
        while self._chains.extend(start, ids, block_size, hashes, _BLOCKS_AT_ONCE):
            await self._own_turn()
        return hashes

    async def _fallback(
        self, request: ApiRequest, spec: ModelSpec, start: int, engine: str, reason: str, took: Took
    ) -> Prompt:
        if self._engine_ids is not None:
            ids = await self._engine_ids(request, spec, engine, reason)
            took.lap("tokenize")
            if ids is not None:
                chain = await self._chain(start, ids, spec.block_size)
                took.lap("hash")
                return Prompt(len(ids) // TOKEN_BYTES, chain, spec.block_size, True, None, ids)
        try:
            if _elaborate(request):
                text = await asyncio.get_running_loop().run_in_executor(self._pool, canonical_text, request)
            else:
                text = canonical_text(request)
        except RecursionError:  # nested deeper than text can be taken from: routed by load
            text = b""
        size = CHUNK_BLOCKS * spec.block_size
        chain = await self._chain(approximate_root(start), text, size)
        took.lap("hash")
        return Prompt(len(text) // TOKEN_BYTES, chain, size, False, reason)


def _elaborate(request: ApiRequest) -> bool:
    """Whether the messages and what belongs to them are too much to look through on the loop."""
    if request.prompts:
        return False
    messages = request.body.get("messages") or request.body.get("input")
    if isinstance(messages, list) and len(messages) > _MANY_MESSAGES:
        return True
    if request.size <= LONG_BYTES:
        return False
    left: list[Any] = [request.body]
    for _ in range(_MANY_VALUES):
        if not left:
            return False
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return True
