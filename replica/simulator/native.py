"""Engines' own generate routes: SGLang's /generate, TGI's /generate and /generate_stream, TGI's token routes."""

from __future__ import annotations

import json
import os
from typing import Any

from .config import ReplicaConfig
from .engine import Engine
from .faults import Faults
from .http import Reply, Request
from .openai import submit
from .requests import RequestReader
from .sequence import Sequence
from .shapes import DONE, compact, sse
from .tokens import Words


class SGLangShape:
    """SGLang's native answer: in a stream `text` grows with every event."""

    def __init__(self, words: Words, answer_id: str) -> None:
        self._words = words
        self._id = answer_id

    def opening(self, seq: Sequence) -> bytes:
        return b""

    def token(self, seq: Sequence) -> bytes:
        return sse(self._answer(seq))

    def closing(self, sequences: list[Sequence], prompt_tokens: int) -> bytes:
        return DONE

    def whole(self, sequences: list[Sequence], prompt_tokens: int) -> bytes:
        answers = [self._answer(seq) for seq in sequences]
        return compact(answers[0] if len(answers) == 1 else answers)

    def _answer(self, seq: Sequence) -> dict[str, Any]:
        ids = seq.output[: seq.generated]
        finish = {"type": "length", "length": seq.max_tokens} if seq.finished else None
        meta = {
            "id": self._id,
            "finish_reason": finish,
            "prompt_tokens": seq.prompt_len,
            "weight_version": "default",
            "completion_tokens": seq.generated,
            "cached_tokens": seq.cached,
            "cached_tokens_details": {"device": seq.cached, "host": 0},
        }
        return {"text": "".join(self._words.text[token] for token in ids), "output_ids": ids, "meta_info": meta}


class TgiShape:
    """TGI's native answer: events with one token, the last one with the whole text."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def opening(self, seq: Sequence) -> bytes:
        return b""

    def token(self, seq: Sequence) -> bytes:
        token = seq.output[seq.generated - 1]
        event: dict[str, Any] = {
            "index": seq.generated,
            "token": {"id": token, "text": self._words.text[token], "logprob": 0.0, "special": False},
            "generated_text": self._text(seq) if seq.finished else None,
            "details": self._details(seq) if seq.finished else None,
        }
        return b"data:" + compact(event) + b"\n\n"

    def closing(self, sequences: list[Sequence], prompt_tokens: int) -> bytes:
        return b""

    def whole(self, sequences: list[Sequence], prompt_tokens: int) -> bytes:
        return compact({"generated_text": self._text(sequences[0]), "details": self._details(sequences[0])})

    def _text(self, seq: Sequence) -> str:
        return "".join(self._words.text[token] for token in seq.output[: seq.generated])

    def _details(self, seq: Sequence) -> dict[str, Any]:
        return {"finish_reason": "length", "generated_tokens": seq.generated, "seed": None}


class NativeRoutes:
    """Handlers like OpenAIRoutes'."""

    def __init__(self, config: ReplicaConfig, engine: Engine, faults: Faults, reader: RequestReader) -> None:
        self._config = config
        self._engine = engine
        self._faults = faults
        self._reader = reader

    def sglang_generate(self, request: Request, reply: Reply) -> None:
        body = self._reader.body(request)
        given = body.get("input_ids") if body.get("input_ids") is not None else body.get("text")
        prompts = self._reader.completion_prompts(given, "text")
        asked = self._reader.positive(body.get("sampling_params") or {}, "max_new_tokens")
        sequences = self._reader.sequences(prompts, body, asked=asked, model="")
        shape = SGLangShape(self._engine.tokenizer.words, str(body.get("rid") or os.urandom(16).hex()))
        submit(self._engine, self._faults, reply, sequences, shape, n=1, stream=bool(body.get("stream")))

    def tgi_generate(self, request: Request, reply: Reply) -> None:
        body = self._reader.body(request)
        self._tgi(body, reply, stream=request.path == "/generate_stream" or bool(body.get("stream")))

    def _tgi(self, body: dict[str, Any], reply: Reply, *, stream: bool) -> None:
        prompts = self._reader.completion_prompts(body.get("inputs"), "inputs")
        asked = self._reader.positive(body.get("parameters") or {}, "max_new_tokens")
        sequences = self._reader.sequences(prompts[:1], {}, asked=asked, model="")
        shape = TgiShape(self._engine.tokenizer.words)
        submit(self._engine, self._faults, reply, sequences, shape, n=1, stream=stream)

    def tgi_tokenize(self, request: Request, reply: Reply) -> None:
        body = self._reader.body(request)
        reply.send(
            200, compact(self._pieces(self._reader.completion_prompts(body.get("inputs"), "inputs")[0].tolist()))
        )

    def tgi_chat_tokenize(self, request: Request, reply: Reply) -> None:
        ids = self._reader.chat_prompt(self._reader.body(request)).tolist()
        text = self._engine.tokenizer.decode(ids)
        reply.send(200, json.dumps({"tokenize_response": self._pieces(ids), "templated_text": text}).encode())

    def _pieces(self, ids: list[int]) -> list[dict[str, Any]]:
        pieces, position = [], 0
        for token in ids:
            text = self._engine.tokenizer.decode([token])
            pieces.append({"id": token, "text": text, "start": position, "stop": position + len(text)})
            position += len(text)
        return pieces
