"""What an engine will encode for a request: texts and ids, in order. No I/O, no caches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from router.blocks import TOKEN_BYTES, pack
from router.prompt import anthropic, responses, sglang, vllm
from router.prompt.conversation import Conversation, Inexact
from router.prompt.model import REMOTE_CODE, ChatModel
from router.prompt.requests import ApiRequest, Endpoint
from router.prompt.scored import scored_prompts
from router.prompt.template import TemplateError

_SCORING = frozenset({Endpoint.SCORE, Endpoint.SCORE_ITEMS, Endpoint.RERANK})


class Spec(Protocol):
    """The part of stage.ModelSpec that is needed here."""

    @property
    def model(self) -> ChatModel | None: ...
    @property
    def default_template_kwargs(self) -> Mapping[str, Any]: ...
    @property
    def content_format(self) -> str: ...
    @property
    def exclude_tools_when_none(self) -> bool: ...
    @property
    def max_model_len(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A text to encode. `drop_first`: an id (packed) that is dropped if the text's ids begin with it."""

    text: str
    add_special_tokens: bool
    drop_first: bytes = b""


@dataclass(frozen=True, slots=True)
class Plan:
    """The prompts of a request, to be gone through once, each a list of texts to encode and packed ids to join.

    `keep`: the number of leading tokens that a right truncation keeps. `left`: more tokens than this and the engine
    cuts off the beginning. `reason`: set if the engine may encode something else.
    """

    prompts: Iterable[list[Part | bytes]]
    reason: str | None = None
    keep: int | None = None
    left: int | None = None

    def cut(self, ids: bytes) -> bytes:
        """The ids after the truncation asked for. Raises Inexact if it takes the beginning away."""
        if self.left is not None and len(ids) > self.left * TOKEN_BYTES:
            raise Inexact("left-truncation")
        return ids if self.keep is None else ids[: self.keep * TOKEN_BYTES]


def parts_of(request: ApiRequest, spec: Spec, engine: str, *, aside: bool = False) -> Plan:
    """The request's plan for an engine of this kind. Raises Inexact. `aside`: see ChatModel.render."""
    if spec.model is None:
        raise Inexact("no-model-files")
    keep, left = _truncation(request.body, spec.max_model_len)
    of_ids = request.prompts and all(isinstance(prompt, bytes) for prompt in request.prompts)
    if spec.model.own_encoder == REMOTE_CODE and not of_ids:
        raise Inexact(REMOTE_CODE)
    if request.prompts:
        special = request.body.get("add_special_tokens")
        add = True if special is None else bool(special)
        prompts = ([p if isinstance(p, bytes) else Part(p, add)] for p in request.prompts)
        return Plan(prompts, None, keep, left)
    if request.endpoint in _SCORING:
        scored = scored_prompts(request, engine)
        if engine == "vllm" and spec.max_model_len is not None:
            keep = spec.max_model_len - 1  # one token is generated
        return Plan(([p if isinstance(p, bytes) else Part(*p) for p in prompt] for prompt in scored), None, keep, left)
    sent = _sent_ids(request.body, engine)
    if sent is not None:
        return Plan([[sent]], None, keep, left)
    chat = _chat(_chat_body(request, engine), spec, spec.model, engine, aside)
    return Plan([chat], _doubt(engine), keep, left)


def _doubt(engine: str) -> str | None:
    return None if engine in ("vllm", "sglang") else f"{engine}-renders-itself"


def _truncation(body: Mapping[str, Any], limit: int | None) -> tuple[int | None, int | None]:
    wanted = body.get("truncate_prompt_tokens")
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        return None, None
    if wanted < 0:
        if limit is None:
            return None, None  # nobody told the limit; a prompt beyond it is rare
        wanted = limit - 1
    return (wanted, None) if body.get("truncation_side") == "right" else (None, wanted)


def _sent_ids(body: Mapping[str, Any], engine: str) -> bytes | None:
    """Ids that a client sends along with a chat request, in the engine's own way."""
    if engine == "vllm":
        settings = body.get("kv_transfer_params")
        ids = settings.get("prompt_token_ids") if isinstance(settings, dict) and not body.get("echo") else None
    else:
        ids = body.get("input_ids") if engine == "sglang" else None
    if not isinstance(ids, list) or not ids:
        return None
    try:
        return pack(ids)
    except (TypeError, OverflowError):
        raise Inexact("request-input-ids") from None


def _chat_body(request: ApiRequest, engine: str) -> Mapping[str, Any]:
    if request.endpoint is Endpoint.CHAT:
        return request.body
    if request.endpoint is Endpoint.MESSAGES:
        if engine == "tgi":
            raise Inexact("unsupported-endpoint")
        return anthropic.chat_body(request.body)
    if request.endpoint is Endpoint.RESPONSES:
        return responses.chat_body(request.body)
    raise Inexact("unsupported-endpoint")


def _chat(body: Mapping[str, Any], spec: Spec, model: ChatModel, engine: str, aside: bool) -> list[Part | bytes]:
    if model.own_encoder is not None:
        raise Inexact(model.own_encoder)
    try:
        if engine == "sglang":
            talk = sglang.conversation(body, _format(spec, model, body, "sglang"))
        else:
            talk = vllm.conversation(
                body,
                model.template(body.get("tools")),
                _format(spec, model, body, "vllm"),
                defaults=spec.default_template_kwargs,
                exclude_tools_when_none=spec.exclude_tools_when_none,
            )
        text = _render(model, talk, engine, aside)
    except TemplateError:
        raise Inexact("template-error" if model.template_source is not None else "no-chat-template") from None
    parts: list[Part | bytes] = [Part(text, engine == "vllm" and bool(body.get("add_special_tokens")))]
    if talk.continuation:
        bos = model.special_tokens.get("bos_token")
        parts.append(Part(talk.continuation, True, model.encode(bos) if bos else b""))
    return parts


def _format(spec: Spec, model: ChatModel, body: Mapping[str, Any], engine: str) -> Any:
    return model.content_format(body.get("tools"), engine) if spec.content_format == "auto" else spec.content_format


def _render(model: ChatModel, talk: Conversation, engine: str, aside: bool = False) -> str:
    flags = {
        "aside": aside,
        "add_generation_prompt": talk.add_generation_prompt,
        "continue_final_message": talk.continue_final_message,
    }
    try:
        return model.render(talk.messages, talk.tools, **flags, **talk.variables)
    except TemplateError:
        if engine != "sglang" or talk.tools is None:
            raise
        bare = [tool.get("function", tool) for tool in talk.tools]  # SGLang's second try
        return model.render(talk.messages, bare, **flags, **talk.variables)
