"""Reading a generation request as the engine does: JSON, fields, prompts to token ids. Bad input -> EngineError."""

from __future__ import annotations

import json
from array import array
from typing import Any

import msgspec

from router.prompt.template import TemplateError

from .config import ReplicaConfig
from .http import Request
from .sequence import Sequence
from .shapes import error_body
from .tokens import EngineTokenizer

BAD_REQUEST = "BadRequestError"
VALIDATION = "Bad Request"


class EngineError(Exception):
    """An answer that is not a generation: status and body are ready to send."""

    def __init__(self, kind: str, status: int, message: str, error_type: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(kind, status, message, error_type, param)


class OutOfVocabulary(Exception):
    """SGLang dies of a token id outside its vocabulary, and takes every request with it."""


class RequestReader:
    """Turns request bodies into sequences for one replica."""

    def __init__(self, config: ReplicaConfig, tokenizer: EngineTokenizer) -> None:
        self._config = config
        self._kind = config.kind
        self._tokenizer = tokenizer

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request. vLLM insists on the content type."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._kind == "vllm" and media != "application/json":
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise EngineError(self._kind, 400, message, VALIDATION)
        try:
            value = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._invalid_json(request.body) from None
        if not isinstance(value, dict):
            raise self.invalid(
                "model_attributes_type",
                "body",
                "Input should be a valid dictionary or object to extract fields from",
                f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, list) else str(value),
            )
        return value

    def _invalid_json(self, body: bytes) -> EngineError:
        reason, position = "Expecting value", 0
        try:
            json.loads(body)
        except json.JSONDecodeError as error:
            reason, position = error.msg, error.pos
        except ValueError:
            pass
        detail = f"'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {{'error': '{reason}'}}"
        message = f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{position}', {detail}}}"
        return EngineError(self._kind, 400, message, VALIDATION, f"body.{position}")

    def invalid(self, error: str, where: str, message: str, value: str) -> EngineError:
        """A validation error as FastAPI words it."""
        text = f"1 validation error:\n  {{'type': '{error}', 'loc': '{where}', 'msg': '{message}', 'input': '{value}'}}"
        return EngineError(self._kind, 400, text, VALIDATION, where)

    def refuse(self, message: str, param: str | None = None) -> EngineError:
        return EngineError(self._kind, 400, message, BAD_REQUEST, param)

    def model(self, body: dict[str, Any]) -> str:
        """The model name to answer with. vLLM: 404 for an unknown one; SGLang and TGI serve any name.

        SGLang takes an adapter as `base:adapter`, or in `lora_path`.
        """
        name = body.get("model")
        if name is None:
            return "default" if self._kind == "sglang" else self._config.model
        known = (self._config.model, *self._config.aliases, *self._config.loras)
        if self._kind == "vllm" and name not in known:
            message = f"The model `{name}` does not exist. Valid aliases: {', '.join(known)}."
            raise EngineError(self._kind, 404, message, "NotFoundError", "model")
        return str(name)

    def chat_prompt(self, body: dict[str, Any]) -> array[int]:
        messages = body.get("messages")
        if messages is None:
            raise self.invalid("missing", "body.messages", "Field required", f"<dict of {len(body)} items>")
        if not isinstance(messages, list):
            raise self.invalid("list_type", "body.messages", "Input should be a valid list", str(messages)[:80])
        given = body.get("input_ids") if self._kind == "sglang" else None
        if self._kind == "vllm" and isinstance(body.get("kv_transfer_params"), dict):
            given = body["kv_transfer_params"].get("prompt_token_ids")
        if given:
            return self._ids(given)
        try:
            return self._tokenizer.chat(body)
        except (TemplateError, ValueError, TypeError, AttributeError) as error:
            raise self.refuse(str(error), "messages") from error

    def completion_prompts(self, prompt: Any, field: str = "prompt") -> list[array[int]]:
        """One prompt (text or ids) or several."""
        if prompt is None:
            raise self.refuse(
                f"Either prompt or prompt_embeds must be provided and non-empty. (parameter={field})", field
            )
        if isinstance(prompt, str):
            return [self._tokenizer.encode(prompt)]
        if not isinstance(prompt, list) or not prompt:
            raise self.refuse("You must pass at least one prompt")
        if isinstance(prompt[0], int):
            return [self._ids(prompt)]
        return [self._tokenizer.encode(item) if isinstance(item, str) else self._ids(item) for item in prompt]

    def _ids(self, ids: Any) -> array[int]:
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise self.refuse("a prompt of token ids must be a list of integers", "prompt")
        for token in ids:
            if not 0 <= token < self._tokenizer.vocab_size:
                if self._kind == "sglang":
                    raise OutOfVocabulary(token)
                raise self.refuse(f"Token id {token} is out of vocabulary")
        return array("I", ids)

    def positive(self, body: dict[str, Any], name: str) -> int | None:
        value = body.get(name)
        if value is None:
            return None
        if type(value) is not int or value < 1:
            raise self.refuse(f"{name} must be at least 1, got {value}. (parameter={name}, value={value})", name)
        return value

    def sequences(
        self, prompts: list[array[int]], body: dict[str, Any], *, asked: int | None, model: str, n: int = 1
    ) -> list[Sequence]:
        """Sequences for prompts times choices; checks the context limit as vLLM words it."""
        limit = self._config.context_limit
        length = asked or self._config.default_max_tokens
        if asked and asked > limit:
            raise self.refuse(
                f"max_tokens={asked} cannot be greater than max_model_len={limit}. Please request fewer output tokens. "
                f"(parameter=max_tokens, value={asked})",
                "max_tokens",
            )
        if self._kind == "sglang":
            model = model.partition(":")[2] or str(body.get("lora_path") or "")
        lora = model if model in self._config.loras else None
        salt = body.get("cache_salt") or None
        made: list[Sequence] = []
        for prompt in prompts:
            size = len(prompt)
            if size == 0:
                raise self.refuse("The prompt must have at least one token", "prompt")
            if size + (asked or 1) > limit:
                raise self.refuse(
                    f"This model's maximum context length is {limit} tokens. However, your prompt contains {size} "
                    "input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
                    f"of the input prompt. (parameter=input_tokens, value={size})",
                    "input_tokens",
                )
            for choice in range(n):
                fits = min(length, limit - size)
                output = self._tokenizer.words.answer(prompt, fits, choice)
                tokens = prompt[:]
                made.append(Sequence(size, fits, tokens, output, lora=lora, salt=salt, index=len(made)))
        return made
