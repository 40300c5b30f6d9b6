"""The OpenAI routes of a simulated engine, and the token and render routes beside them."""

from __future__ import annotations

import os
import time
from array import array
from typing import Any

from router.blocks import pack

from .config import ReplicaConfig
from .engine import Engine
from .faults import Faults
from .generation import Generation
from .http import Reply, Request
from .requests import EngineError, RequestReader
from .scheduler import QueueFull
from .shapes import Shape, compact


class OpenAIRoutes:
    """Handlers take a request and a reply; they raise EngineError for everything that is refused."""

    def __init__(self, config: ReplicaConfig, engine: Engine, faults: Faults) -> None:
        self._config = config
        self._kind = config.kind
        self._engine = engine
        self._faults = faults
        self.reader = RequestReader(config, engine.tokenizer)

    def chat(self, request: Request, reply: Reply) -> None:
        body = self.reader.body(request)
        model = self.reader.model(body)
        asked = self.reader.positive(body, "max_completion_tokens") or self.reader.positive(body, "max_tokens")
        self._generate(request, reply, body, [self.reader.chat_prompt(body)], model, asked, chat=True)

    def completions(self, request: Request, reply: Reply) -> None:
        body = self.reader.body(request)
        model = self.reader.model(body)
        asked = self.reader.positive(body, "max_tokens")
        self._generate(
            request, reply, body, self.reader.completion_prompts(body.get("prompt")), model, asked, chat=False
        )

    def _generate(
        self,
        request: Request,
        reply: Reply,
        body: dict[str, Any],
        prompts: list[array[int]],
        model: str,
        asked: int | None,
        *,
        chat: bool,
    ) -> None:
        temperature = body.get("temperature")
        if isinstance(temperature, int | float) and temperature < 0:
            text = f"temperature must be non-negative, got {float(temperature)}."
            raise self.reader.refuse(f"{text} (parameter=temperature, value={float(temperature)})", "temperature")
        n = self.reader.positive(body, "n") or 1
        stream = bool(body.get("stream"))
        options = body.get("stream_options") or {}
        sequences = self.reader.sequences(prompts, body, asked=asked, model=model, n=n)
        shape = Shape(
            kind=self._kind,
            chat=chat,
            answer_id=self._answer_id(request, body, chat),
            created=int(time.time()),
            model=model,
            words=self._engine.tokenizer.words,
            finish="length" if asked else "stop",
            report_cached=self._config.report_cached_tokens,
            include_usage=bool(options.get("include_usage")),
            continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
            return_ids=bool(body.get("return_token_ids")),
            n=n,
        )
        submit(self._engine, self._faults, reply, sequences, shape, n=n, stream=stream)

    def _answer_id(self, request: Request, body: dict[str, Any], chat: bool) -> str:
        if self._kind == "sglang":
            return str(body.get("rid") or os.urandom(16).hex())
        given = request.headers.get("x-request-id") or body.get("request_id") or os.urandom(8).hex()
        return f"{'chatcmpl' if chat else 'cmpl'}-{given}"

    def embeddings(self, request: Request, reply: Reply) -> None:
        """Eight numbers per input that depend on its ids; costs no engine time."""
        body = self.reader.body(request)
        model = self.reader.model(body)
        prompts = self.reader.completion_prompts(body.get("input"), "input")
        data = []
        for index, prompt in enumerate(prompts):
            vector = [((sum(prompt[part::8]) * 2654435761) % 2001 - 1000) / 1000 for part in range(8)]
            data.append({"index": index, "object": "embedding", "embedding": vector})
        tokens = sum(map(len, prompts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        answer = {"id": f"embd-{os.urandom(8).hex()}", "object": "list", "created": int(time.time()), "model": model}
        reply.send(200, compact({**answer, "data": data, "usage": usage}))

    def tokenize(self, request: Request, reply: Reply) -> None:
        body = self.reader.body(request)
        self.reader.model(body)
        chat = "messages" in body
        ids = (
            self.reader.chat_prompt(body) if chat else self.reader.completion_prompts(body.get("prompt"))[0]
        ).tolist()
        limit = self._config.max_model_len
        if self._kind == "sglang":
            reply.send(200, compact({"tokens": ids, "count": len(ids), "max_model_len": limit}))
            return
        answer = {"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None}
        if body.get("return_token_strs"):
            answer["token_strs"] = [self._engine.tokenizer.decode([token]) for token in ids]
        reply.send(200, compact(answer))

    def detokenize(self, request: Request, reply: Reply) -> None:
        body = self.reader.body(request)
        tokens = body.get("tokens")
        if not isinstance(tokens, list):
            raise self.reader.refuse("tokens must be a list of integers", "tokens")
        try:
            pack(tokens)
        except (TypeError, OverflowError) as error:
            raise self.reader.refuse(str(error), "tokens") from error
        text = self._engine.tokenizer.decode(tokens)
        reply.send(200, compact({"text" if self._kind == "sglang" else "prompt": text}))

    def chat_render(self, request: Request, reply: Reply) -> None:
        self._needs_scale_out()
        body = self.reader.body(request)
        model = self.reader.model(body)
        reply.send(200, compact(self._rendered("chatcmpl", self.reader.chat_prompt(body).tolist(), body, model)))

    def completion_render(self, request: Request, reply: Reply) -> None:
        self._needs_scale_out()
        body = self.reader.body(request)
        model = self.reader.model(body)
        prompts = self.reader.completion_prompts(body.get("prompt"))
        reply.send(200, compact([self._rendered("cmpl", prompt.tolist(), body, model) for prompt in prompts]))

    def _needs_scale_out(self) -> None:
        if not self._config.scale_out:
            message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
            raise EngineError(self._kind, 403, message, "PermissionDeniedError")

    def _rendered(self, prefix: str, ids: list[int], body: dict[str, Any], model: str) -> dict[str, Any]:
        return {
            "request_id": f"{prefix}-{os.urandom(8).hex()}",
            "token_ids": ids,
            "token_offsets": None,
            "features": None,
            "sampling_params": {"temperature": 1.0, "max_tokens": body.get("max_tokens")},
            "model": model,
            "stream": bool(body.get("stream")),
            "cache_salt": body.get("cache_salt"),
            "priority": 0,
        }


def submit(
    engine: Engine, faults: Faults, reply: Reply, sequences: list[Any], shape: Any, *, n: int, stream: bool
) -> None:
    """Start a generation; the engine's refusals become its answers."""
    kind = engine.config.kind
    try:
        Generation(engine, faults, reply, sequences, shape, n=n, stream=stream)
    except QueueFull:
        if kind == "tgi":
            raise EngineError(kind, 429, "Model is overloaded", "overloaded") from None
        message = "The server is overloaded: the request queue is full. Retry on a different instance."
        raise EngineError(kind, 503, message, "Service Unavailable") from None
    except ValueError as error:
        raise EngineError(kind, 400, str(error), "BadRequestError") from error
