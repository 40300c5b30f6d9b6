"""What besides tokens makes two blocks differ: LoRA adapter, cache salt, images, anything an engine adds.

vLLM lists per block, untagged and in this order (reference/engine-protocol.md A.5): the adapter's name, one
`[identifier, offset]` per image, the cache salt (first block only), a digest of prompt embeddings. Adapter and salt
have a place in the chain's root, as the router knows them from the request; whatever else is there is mixed in
opaquely, so that such a block never matches plain text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.blocks import mix, root
from router.index.wire import BlockStored


def split_extra(extra: list[Any] | None, lora_name: str | None, first_block: bool) -> tuple[str, bytes]:
    """(salt, opaque rest) of one block's extra keys."""
    if not extra:
        return "", b""
    rest = list(extra)
    if lora_name is not None and rest[0] == lora_name:
        del rest[0]
    salt = ""
    if first_block:
        strings = [value for value in rest if isinstance(value, str)]
        if len(strings) == 1:
            salt = strings[0]
            rest.remove(salt)
    return salt, msgspec.msgpack.encode(rest) if rest else b""


def event_root(event: BlockStored, model: str, block_size: int) -> int:
    """The root of the chain whose first block is the event's first."""
    salt, _ = split_extra(event.extra_keys[0] if event.extra_keys else None, event.lora_name, True)
    start = root(event.lora_name or model, block_size=block_size, salt=event.salt or salt)
    if event.lora_id is not None and event.lora_name is None:  # vLLM < 0.14 does not say which adapter it is
        start = mix(start, f"lora_id:{event.lora_id}".encode())
    return start


def opaque_parts(event: BlockStored) -> list[bytes] | None:
    """Per block what must be mixed into its parent; None if that is nothing for every block."""
    if event.extra_keys is None:
        return None
    parts = [
        split_extra(extra, event.lora_name, event.parent is None and position == 0)[1]
        for position, extra in enumerate(event.extra_keys)
    ]
    return parts if any(parts) else None
