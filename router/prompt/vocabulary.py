"""Token ids that clients send must be ids the model knows: one outside its vocabulary ends a whole SGLang server."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from router.prompt.requests import ApiRequest, BadRequest, Endpoint

_PACKED = {Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input", Endpoint.GENERATE: "input_ids"}
_SCORED = ("query", "items", "label_token_ids")
_LISTS = ("input_ids", "prompt_token_ids", "token_ids")
_BIG_ENDIAN = array("I", [1]).tobytes()[0] == 0


def check_ids(request: ApiRequest, size: int | None) -> None:
    """Raises BadRequest if a prompt of ids holds one of `size` or more (None: unknown, everything passes).

    Looked at: `prompt`, `input`, `input_ids` (also SGLang's in a chat), `prompt_token_ids`,
    `kv_transfer_params.prompt_token_ids`, `token_ids` (vLLM's /inference/v1/generate), and of scoring requests `query`,
    `items` and `label_token_ids`.
    """
    if size is None:
        return
    for name, largest in _largest(request):
        if not 0 <= largest < size:
            message = f"'{name}' holds the token id {largest}; the model's vocabulary has the ids 0 to {size - 1}"
            raise BadRequest(message, param=name, code="invalid_token_id")


def _largest(request: ApiRequest) -> Iterator[tuple[str, int]]:
    """(field, an id that no other of it is further out than)."""
    name = _PACKED.get(request.endpoint, "")
    for position, prompt in enumerate(request.prompts):
        if isinstance(prompt, bytes) and prompt:
            ids = array("I", prompt)
            if _BIG_ENDIAN:
                ids.byteswap()
            yield (f"{name}[{position}]" if len(request.prompts) > 1 else name), max(ids)
    if request.endpoint is Endpoint.GENERATE:
        return
    scored = request.endpoint in (Endpoint.SCORE, Endpoint.SCORE_ITEMS)
    for name in (*_LISTS, *_SCORED) if scored else _LISTS:
        if name in request.body:
            yield from _of_list(name, request.body[name])
    transfer = request.body.get("kv_transfer_params")
    if isinstance(transfer, dict):
        yield from _of_list("kv_transfer_params.prompt_token_ids", transfer.get("prompt_token_ids"))


def _of_list(name: str, value: object) -> Iterator[tuple[str, int]]:
    if not isinstance(value, list):
        return
    for item in value:
        if isinstance(item, list):
            yield from _of_list(name, item)
    ids = [item for item in value if isinstance(item, int)]
    if ids:
        yield name, min(ids) if min(ids) < 0 else max(ids)
