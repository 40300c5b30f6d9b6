"""What event payloads mean, told a second time: slowly, from the protocol's description and the block contract alone.

Nothing of router/ is used, so that a mistake there is not repeated here. State is kept as the engine would describe it:
which blocks exist in which tier, how many copies, and for each of them the whole path of tokens (and of whatever else
makes blocks differ) that was announced for it. `keys` are the block hashes a router may publish for that.

A hash that is announced for two paths (no engine does; mutated bytes do) counts as both: `keys` is then an upper
bound, and `certain` is False until the next clear.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import xxhash

Verdict = Literal["applied", "cleared", "unsupported"]
TIERS = {None: 0, "GPU": 0, "CPU": 1, "CPU_PINNED": 1, "STORAGE": 2, "DISK": 2}
FIELDS = {
    "BlockStored": [
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
    ],
    "BlockRemoved": ["block_hashes", "medium", "group_idx"],
    "AllBlocksCleared": [],
}


class Bad(Exception):
    """An event that cannot be read."""


class Pairs(Exception):
    """EAGLE: pairs of tokens."""


def start_of(model: str, salt: str, block_size: int) -> int:
    parts = [b"prefix-router/blocks/v1", model.encode(), salt.encode(), b""]
    packed = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return xxhash.xxh3_64_intdigest(packed + block_size.to_bytes(4, "little"))


def block_key(before: int, tokens: list[int]) -> int:
    return xxhash.xxh3_64_intdigest(struct.pack(f"<{len(tokens)}I", *tokens), before)


def mixed(before: int, extra: bytes) -> int:
    return xxhash.xxh3_64_intdigest(extra, before ^ 0x9E3779B97F4A7C15)


@dataclass(eq=False)
class Node:
    """One announced block or page on one path. `keys` of the router's blocks it holds or completes; `pages` its block's
    pages so far, when it is a part of a block; `ident` names the path."""

    ident: bytes
    base: int
    tokens: list[int] = field(default_factory=list)
    pages: list[Any] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    @property
    def within(self) -> bool:
        return bool(self.pages) and not self.keys

    @property
    def end(self) -> int:
        return self.keys[-1] if self.keys else self.base


class Oracle:
    def __init__(self, model: str, block_size: int, *, counts_copies: bool) -> None:
        self.model, self.block_size, self.counts = model, block_size, counts_copies
        self.clear()

    def clear(self) -> None:
        self.copies: dict[tuple[Any, int, Any], int] = {}
        self.paths: dict[tuple[Any, Any], dict[bytes, Node]] = {}
        self.named: dict[tuple[Any, Any], bytes] = {}
        self.certain = True

    def keys(self) -> dict[int, set[int]]:
        """Tier -> what may be published of it."""
        found: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
        for group, tier, name in self.copies:
            for node in self.paths[group, name].values():
                if all((group, tier, page) in self.copies for page in node.pages):
                    found[tier].update(node.keys)
        return found

    def feed(self, payload: bytes) -> Verdict:
        try:
            raw = msgspec.msgpack.decode(payload)
            ts, events = (raw["ts"], raw["events"]) if isinstance(raw, dict) else (raw[0], raw[1])
            if not isinstance(raw, dict | list) or not isinstance(ts, float | int) or not isinstance(events, list):
                raise Bad
        except Exception:
            self.clear()
            return "cleared"
        read = []
        doubtful = False
        for event in events:
            try:
                read.append(self._read(event))
            except Pairs:
                self.clear()
                return "unsupported"
            except Bad:
                named = event.get("type") if isinstance(event, dict) else (event or [0])[0] if _list(event) else 0
                doubtful = doubtful or named != "BlockStored"
        refused = False
        for kind, fields in filter(None, read):
            if kind == "AllBlocksCleared":
                self.clear()
            elif kind == "BlockRemoved":
                self._remove(fields)
            else:
                refused = self._store(fields) or refused
        if doubtful or refused:
            self.clear()
            return "cleared" if doubtful else "unsupported"
        return "applied"

    def _read(self, event: Any) -> tuple[str, dict[str, Any]] | None:
        """(tag, fields); None for what a newer engine may say."""
        if not isinstance(event, dict) and not (_list(event) and event):
            raise Bad
        tag = event.get("type") if isinstance(event, dict) else event[0]
        if not isinstance(tag, str):
            raise Bad
        if tag not in FIELDS:
            return None
        names = FIELDS[tag]
        got = event if isinstance(event, dict) else dict(zip(names, event[1:], strict=False))
        fields = {name: got.get(name) for name in [*names, "cache_salt"]}
        if tag == "AllBlocksCleared":
            return tag, {}
        hashes, medium = fields["block_hashes"], fields["medium"]
        _need(_list(hashes) and (all(type(h) is int for h in hashes) or all(type(h) is bytes for h in hashes)))
        if tag == "BlockStored":
            self._check_content(fields)
        _need(medium is None or type(medium) is str)
        if tag == "BlockStored" and medium in TIERS:  # of a tier that is not known nothing more is looked at
            self._check_names(fields)
            _need(fields["group_idx"] is None or type(fields["group_idx"]) is int)
        if tag == "BlockRemoved":
            _need(fields["group_idx"] is None or type(fields["group_idx"]) is int)
        if medium not in TIERS:
            return None
        fields["tier"] = TIERS[medium]
        return tag, fields

    @staticmethod
    def _check_content(fields: dict[str, Any]) -> None:
        tokens = fields["token_ids"]
        _need(type(fields["parent_block_hash"]) in (int, bytes, type(None)))
        _need(type(fields["block_size"]) is int and fields["block_size"] >= 0)
        _need(_list(tokens))
        if tokens and all(_list(token) and len(token) == 2 and {*map(type, token)} == {int} for token in tokens):
            raise Pairs
        _need(all(type(token) in (int, bool) and 0 <= token < 2**32 for token in tokens))

    @staticmethod
    def _check_names(fields: dict[str, Any]) -> None:
        if type(fields["lora_name"]) is dict:  # SGLang 0.5.18-0.5.19
            fields["cache_salt"], fields["lora_name"] = fields["lora_name"].get("cache_salt"), None
        for name, kind in (("lora_id", int), ("lora_name", str), ("kv_cache_spec_kind", str), ("cache_salt", str)):
            _need(fields[name] is None or type(fields[name]) is kind)
        extra = fields["extra_keys"]
        if extra is not None:
            _need(_list(extra) and len(extra) == len(fields["block_hashes"]))
            _need(all(entry is None or _list(entry) for entry in extra))

    def _remove(self, fields: dict[str, Any]) -> None:
        for name in fields["block_hashes"]:
            self._take(fields["group_idx"], fields["tier"], name)

    def _take(self, group: Any, tier: int, name: Any) -> None:
        place = group, tier, name
        if place in self.copies:
            self.copies[place] -= 1
            if not self.copies[place]:
                del self.copies[place]
                if not any((group, other, name) in self.copies for other in (0, 1, 2)):
                    del self.paths[group, name]

    def _store(self, fields: dict[str, Any]) -> bool:
        """True when blocks of that size cannot be indexed."""
        names, tokens, size = fields["block_hashes"], fields["token_ids"], fields["block_size"]
        if fields["kv_cache_spec_kind"] not in (None, "full_attention", "mla_attention"):
            return False
        group, tier = fields["group_idx"], fields["tier"]
        if not tokens:  # a placeholder: blocks whose tokens are known
            for name in names:
                if (group, name) in self.paths:
                    self._put(group, tier, name, {})
            return False
        if not names or len(tokens) != len(names) * size:
            return False
        if size % self.block_size and self.block_size % size:
            return True
        extras = [self._extra(fields, position) for position in range(len(names))]
        if fields["parent_block_hash"] is None:
            nodes = [self._root(fields)]
        else:
            nodes = list(self.paths.get((group, fields["parent_block_hash"]), {}).values())
        for position, name in enumerate(names):
            part = tokens[position * size : (position + 1) * size]
            nodes = [made for node in nodes if (made := self._next(node, name, part, extras[position])) is not None]
            if not nodes:
                return False
            self._put(group, tier, name, {node.ident: node for node in nodes})
        return False

    def _put(self, group: Any, tier: int, name: Any, nodes: dict[bytes, Node]) -> None:
        for node in nodes.values():
            if self.named.setdefault((group, name), node.ident) != node.ident:
                self.certain = False
        self.paths.setdefault((group, name), {}).update(nodes)
        place = group, tier, name
        self.copies[place] = self.copies.get(place, 0) + 1 if self.counts else 1

    def _next(self, before: Node, name: Any, tokens: list[int], extra: bytes) -> Node | None:
        """The block after `before`; None when it cannot be placed."""
        size = self.block_size
        if len(tokens) >= size:
            if before.within:
                return None
            base = mixed(before.end, extra) if extra else before.end
            node = Node(_ident(before, name, tokens, extra), base)
            for start in range(0, len(tokens), size):
                base = block_key(base, tokens[start : start + size])
                node.keys.append(base)
            return node
        base = before.base if before.within else before.end
        pages, so_far = (before.pages, before.tokens) if before.within else ([], [])
        if extra:
            base = mixed(base, extra)
        node = Node(_ident(before, name, tokens, extra), base, so_far + tokens, [*pages, name])
        if len(node.tokens) == size:
            node.keys = [block_key(base, node.tokens)]
        return node

    def _root(self, fields: dict[str, Any]) -> Node:
        extra, adapter = fields["extra_keys"], fields["lora_name"]
        salt = fields["cache_salt"] or (self._split(extra[0], adapter, True)[0] if extra else "")
        start = start_of(adapter or self.model, salt, self.block_size)
        if fields["lora_id"] is not None and adapter is None:
            start = mixed(start, f"lora_id:{fields['lora_id']}".encode())
        return Node(start.to_bytes(8, "little"), start)

    def _extra(self, fields: dict[str, Any], position: int) -> bytes:
        extra = fields["extra_keys"]
        if not extra:
            return b""
        first = position == 0 and fields["parent_block_hash"] is None
        return self._split(extra[position], fields["lora_name"], first)[1]

    @staticmethod
    def _split(entry: list[Any] | None, adapter: str | None, first: bool) -> tuple[str, bytes]:
        rest = list(entry or [])
        if rest and adapter is not None and rest[0] == adapter:
            rest = rest[1:]
        texts = [value for value in rest if isinstance(value, str)]
        salt = texts[0] if first and len(texts) == 1 else ""
        if salt or (first and texts == [""]):
            rest.remove(salt)
        return salt, msgspec.msgpack.encode(rest) if rest else b""


def _ident(before: Node, name: Any, tokens: list[int], extra: bytes) -> bytes:
    said = msgspec.msgpack.encode([before.ident, name, tokens, extra])
    return hashlib.blake2b(said, digest_size=16).digest()


def _list(value: Any) -> bool:
    return type(value) is list


def _need(held: bool) -> None:
    if not held:
        raise Bad
