"""The published vectors of router/blocks.py, and an implementation written from its description alone.

`python tests/contract/test_block_vectors.py` prints the vectors anew (only for a new format version).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from router.blocks import FORMAT_VERSION, chain, mix, pack, root, unpack

VECTORS = Path(__file__).with_name("block_vectors.json")
IDS = st.lists(st.integers(0, 2**32 - 1), max_size=70)


def plain_root(model: str, block_size: int, salt: str, tenant: str) -> int:
    text = b""
    for part in ("prefix-router/blocks/v1", model, salt, tenant):
        text += len(part.encode()).to_bytes(4, "little") + part.encode()
    return xxhash.xxh3_64(text + block_size.to_bytes(4, "little")).intdigest()


def plain_chain(parent: int, ids: list[int], block_size: int) -> list[int]:
    hashes = []
    for start in range(0, len(ids) - block_size + 1, block_size):
        block = b"".join(struct.pack("<I", token) for token in ids[start : start + block_size])
        parent = xxhash.xxh3_64(block, seed=parent).intdigest()
        hashes.append(parent)
    return hashes


def make_vectors() -> dict[str, Any]:
    roots, chains = [], []
    for model, size, salt, tenant in [
        ("llama", 16, "", ""),
        ("llama", 32, "", ""),
        ("llama", 16, "salt", ""),
        ("llama", 16, "", "salt"),
        ("lla", 16, "ma", ""),
        ("模型/β", 16, "🧂", "tenant-a"),
    ]:
        start = plain_root(model, size, salt, tenant)
        roots.append({"model": model, "block_size": size, "salt": salt, "tenant": tenant, "root": start})
    for parent, size, ids in [
        (roots[0]["root"], 16, list(range(40))),
        (roots[1]["root"], 32, list(range(70))),
        (roots[0]["root"], 16, [0] * 16 + [2**32 - 1] * 16),
        (roots[2]["root"], 1, [1, 2, 3]),
        (0, 4, [7, 8, 9]),
        (2**64 - 1, 4, [7, 8, 9, 10]),
    ]:
        chains.append({"parent": parent, "block_size": size, "ids": ids, "hashes": plain_chain(parent, ids, size)})
    mixes = []
    for parent, extra in [(roots[0]["root"], b"image"), (0, b""), (2**64 - 1, b"\x00\xff")]:
        mixed = xxhash.xxh3_64(extra, seed=parent ^ 0x9E3779B97F4A7C15).intdigest()
        mixes.append({"parent": parent, "extra": extra.hex(), "mixed": mixed})
    return {"format_version": FORMAT_VERSION, "roots": roots, "chains": chains, "mixes": mixes}


@pytest.fixture(scope="module")
def vectors() -> Any:
    return json.loads(VECTORS.read_text())


def test_the_published_vectors_are_what_the_description_says(vectors: Any) -> None:
    assert vectors == make_vectors()


def test_the_code_gives_the_published_vectors(vectors: Any) -> None:
    assert vectors["format_version"] == FORMAT_VERSION
    for case in vectors["roots"]:
        assert (
            root(case["model"], block_size=case["block_size"], salt=case["salt"], tenant=case["tenant"]) == case["root"]
        )
    for case in vectors["chains"]:
        assert chain(case["parent"], pack(case["ids"]), case["block_size"]) == case["hashes"]
    for case in vectors["mixes"]:
        assert mix(case["parent"], bytes.fromhex(case["extra"])) == case["mixed"]
    assert len({case["root"] for case in vectors["roots"]}) == len(vectors["roots"])


@given(ids=IDS, more=IDS, size=st.integers(1, 20), parent=st.integers(0, 2**64 - 1))
def test_a_longer_prompt_has_the_same_chain_and_more(ids: list[int], more: list[int], size: int, parent: int) -> None:
    hashes = chain(parent, pack(ids), size)
    assert hashes == plain_chain(parent, ids, size)
    assert len(hashes) == len(ids) // size
    assert chain(parent, pack(ids + more), size)[: len(hashes)] == hashes
    if hashes:
        rest = pack(ids[len(hashes) * size :] + more)
        assert hashes + chain(hashes[-1], rest, size) == chain(parent, pack(ids + more), size)


@given(ids=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=40), at=st.integers(0, 39))
def test_a_changed_token_changes_its_block_and_all_after_it(ids: list[int], at: int) -> None:
    at %= len(ids)
    changed = [*ids[:at], ids[at] ^ 1, *ids[at + 1 :]]
    before, after = chain(1, pack(ids), 4), chain(1, pack(changed), 4)
    assert before[: at // 4] == after[: at // 4]
    assert all(old != new for old, new in zip(before[at // 4 :], after[at // 4 :], strict=True))


PARTS = st.tuples(st.text(max_size=8), st.integers(1, 512), st.text(max_size=8), st.text(max_size=8))


@given(one=PARTS, other=PARTS)
def test_roots_differ_when_any_part_does(one: tuple[str, int, str, str], other: tuple[str, int, str, str]) -> None:
    roots = [root(model, block_size=size, salt=salt, tenant=tenant) for model, size, salt, tenant in (one, other)]
    assert (roots[0] == roots[1]) == (one == other)
    assert roots[0] == plain_root(*one)


@given(ids=IDS)
def test_pack_and_unpack(ids: list[int]) -> None:
    packed = pack(ids)
    assert len(packed) == 4 * len(ids)
    assert packed == b"".join(struct.pack("<I", token) for token in ids)
    assert unpack(packed) == ids


@pytest.mark.parametrize(("ids", "error"), [([-1], OverflowError), ([2**32], OverflowError), (["a"], TypeError)])
def test_ids_out_of_range_are_errors(ids: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        pack(ids)
    with pytest.raises(ValueError, match="block_size"):
        root("m", block_size=0)


if __name__ == "__main__":
    print(json.dumps(make_vectors(), indent=1, ensure_ascii=False))
