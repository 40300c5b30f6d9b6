"""JSON as each engine writes it: answers, stream chunks, usage, errors. Imitated from recordings of vLLM 0.32 and
SGLang 0.5.23, and from TGI 3.3's documentation. Chunks are glued from bytes made once per request: a streamed token
costs no JSON encoding."""

from __future__ import annotations

import json
from typing import Any

from .sequence import Sequence
from .tokens import Words

FINGERPRINT = "vllm-0.32.0-b6ba2279"
ENGINE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DONE = b"data: [DONE]\n\n"


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def sse(value: Any) -> bytes:
    return b"data: " + compact(value) + b"\n\n"


def error_body(kind: str, status: int, message: str, error_type: str, param: str | None = None) -> bytes:
    """An engine's error. vLLM: {"error": {...}}; SGLang: flat with "object"; TGI: {"error", "error_type"}."""
    if kind == "tgi":
        return compact({"error": message, "error_type": error_type})
    fields = {"message": message, "type": error_type, "param": param, "code": status}
    return compact({"object": "error", **fields} if kind == "sglang" else {"error": fields})


class Shape:
    """The answer to one OpenAI request, whole or in chunks."""

    def __init__(
        self,
        *,
        kind: str,
        chat: bool,
        answer_id: str,
        created: int,
        model: str,
        words: Words,
        finish: str,
        report_cached: bool,
        include_usage: bool = False,
        continuous_usage: bool = False,
        return_ids: bool = False,
        n: int = 1,
    ) -> None:
        self._kind = kind
        self._chat = chat
        self._words = words
        self._finish = finish
        self._report_cached = report_cached
        self._include_usage = include_usage
        self._continuous = continuous_usage
        self._return_ids = return_ids
        self._n = n
        self._base = {"id": answer_id, "created": created, "model": model}
        self._head = self._chunk_head()
        self._plain_tail = self._tail(b"null", final=False)

    def _chunk_head(self) -> bytes:
        base = self._base
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        start = {"id": base["id"], "object": kind, "created": base["created"], "model": base["model"]}
        return b"data: " + compact(start)[:-1] + b',"choices":[{"index":'

    def _tail(self, ids: bytes, *, final: bool) -> bytes:
        """What follows the text of a chunk, up to the end of the choice."""
        finish = b'"%b"' % self._finish.encode() if final else b"null"
        if self._kind == "vllm" and self._chat:
            stop = b',"stop_reason":null' if final else b""
            return b'},"logprobs":null,"finish_reason":' + finish + stop + b',"token_ids":' + ids + b"}]"
        if self._kind == "vllm":
            end = b',"stop_reason":null,"prompt_token_ids":null,"token_ids":' + ids + b"}]"
            return b',"logprobs":null,"finish_reason":' + finish + end
        brace = b"}" if self._chat else b""
        matched = b',"matched_stop":null' if self._kind == "sglang" else b""
        return brace + b',"logprobs":null,"finish_reason":' + finish + matched + b"}]"

    def opening(self, seq: Sequence) -> bytes:
        """The chunk before the first token: the role, in a chat; nothing otherwise."""
        if not self._chat or self._kind == "tgi":
            return b""
        index = b"%d" % seq.index
        if self._kind == "sglang":
            delta = b',"delta":{"reasoning_content":null,"role":"assistant","content":""'
            return self._head + index + delta + self._tail(b"", final=False) + b"}\n\n"
        ids = b"null"
        if self._return_ids and seq.tokens is not None:
            ids = compact(seq.tokens[: seq.prompt_len].tolist())
        usage = b',"usage":' + compact(self._usage(seq.prompt_len, 0, None)) if self._continuous else b""
        delta = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._head + index + delta + usage + b',"prompt_token_ids":' + ids + b',"prompt_text":null}\n\n'

    def token(self, seq: Sequence) -> bytes:
        """The chunk(s) of the newest token of a sequence."""
        token = seq.output[seq.generated - 1]
        text = self._words.json[token]
        if not self._chat:
            field = b',"text":'
        elif self._kind == "sglang":
            field = b',"delta":{"reasoning_content":null,"content":'
        elif self._kind == "tgi":
            field = b',"delta":{"role":"assistant","content":'
        else:
            field = b',"delta":{"content":'
        start = self._head + b"%d" % seq.index
        final = seq.finished
        split = final and self._chat and self._kind == "sglang"
        if self._return_ids:
            tail = self._tail(b"[%d]" % token, final=final and not split)
        else:
            tail = self._tail(b"null", final=True) if final and not split else self._plain_tail
        extra = b""
        if self._continuous:
            extra = b',"usage":' + compact(self._usage(seq.prompt_len, seq.generated, None))
        elif self._kind == "sglang" and not self._chat:
            extra = b',"usage":null'
        if final and self._kind == "vllm" and not self._include_usage:
            extra += b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        chunk = start + field + text + tail + extra + b"}\n\n"
        if split:
            chunk += start + b',"delta":{"reasoning_content":null' + self._tail(b"", final=True) + b"}\n\n"
        return chunk

    def closing(self, sequences: list[Sequence], prompt_tokens: int) -> bytes:
        """The usage chunk, when asked for, and [DONE]."""
        if not self._include_usage:
            return DONE
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        base = self._base
        chunk: dict[str, Any] = {
            "id": base["id"],
            "object": kind,
            "created": base["created"],
            "model": base["model"],
            "choices": [],
            "usage": self._usage(prompt_tokens, _generated(sequences), sequences),
        }
        if self._kind == "vllm":
            chunk["usage"].pop("completion_tokens_details", None)
            chunk["system_fingerprint"] = FINGERPRINT
        return sse(chunk) + DONE

    def whole(self, sequences: list[Sequence], prompt_tokens: int) -> bytes:
        """The answer of a request that is not streamed."""
        base = self._base
        answer: dict[str, Any] = {
            "id": base["id"],
            "object": "chat.completion" if self._chat else "text_completion",
            "created": base["created"],
            "model": base["model"],
            "choices": [self._choice(seq) for seq in sequences],
        }
        if self._kind == "vllm":
            answer |= {"service_tier": None, "system_fingerprint": FINGERPRINT}
        answer["usage"] = self._usage(prompt_tokens, _generated(sequences), sequences)
        if self._kind == "vllm":
            if self._chat:
                ids = self._prompt_ids(sequences[0])
                answer |= {"prompt_logprobs": None, "prompt_token_ids": ids, "prompt_text": None}
            answer |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        elif self._kind == "sglang":
            answer["metadata"] = {"weight_version": "default"}
        return compact(answer)

    def _prompt_ids(self, seq: Sequence) -> list[int] | None:
        return seq.tokens[: seq.prompt_len].tolist() if self._return_ids and seq.tokens is not None else None

    def _choice(self, seq: Sequence) -> dict[str, Any]:
        text = "".join(self._words.text[token] for token in seq.output[: seq.generated])
        choice: dict[str, Any] = {"index": seq.index}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if self._kind == "vllm":
                message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
            elif self._kind == "sglang":
                message["reasoning_content"] = None
            choice["message"] = message
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": self._finish}
        if self._kind == "vllm":
            choice |= {
                "stop_reason": None,
                "token_ids": list(seq.output[: seq.generated]) if self._return_ids else None,
            }
            if not self._chat:
                choice |= {"prompt_logprobs": None, "prompt_token_ids": self._prompt_ids(seq)}
            choice["routed_experts"] = None
        elif self._kind == "sglang":
            choice["matched_stop"] = None
        return choice

    def _usage(self, prompt: int, generated: int, sequences: list[Sequence] | None) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + generated,
            "completion_tokens": generated,
        }
        if self._kind == "tgi":
            return usage
        if sequences is not None:
            cached = sum(seq.cached for seq in sequences[:: self._n])
            details: dict[str, Any] | None = {"cached_tokens": cached} if self._report_cached else None
            if details is not None and self._kind == "vllm":
                details |= {"created_cache_tokens": 0 if self._chat else None, "multimodal_tokens": None}
            usage["prompt_tokens_details"] = details
        if self._kind == "sglang":
            usage["reasoning_tokens"] = 0
        usage["completion_tokens_details"] = None
        return usage


def _generated(sequences: list[Sequence]) -> int:
    return sum(seq.generated for seq in sequences)
