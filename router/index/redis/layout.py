"""The keys of the shared index, layout version 1.

One pool (a model and tenant namespace) has one prefix with one hash tag, so that every multi-key command and script
works in cluster mode: a pool lives on one shard. The tag is a short hash of the pool's name, because it is paid once
for each block; the head spells the name out.

    P = "pr1:{" + 8 characters of url-safe base64 of xxh3_64(pool name) + "}:"

| key                           | type   | holds                                                                   |
|-------------------------------|--------|-------------------------------------------------------------------------|
| P h                           | hash   | the head: v layout version, pool name, gen random id made with the pool,|
|                               |        | n last stream number, slots high-water mark, t1/t2 lower tier in use    |
| P <tier 0-2> <8-byte hash>    | string | bitmap: bit `slot` (little-endian) is set when that slot holds the block|
| P r <tier 0-2> <slot>         | set    | reverse set: the 8-byte hashes that a slot holds in that tier           |
| P i                           | hash   | replica id -> "epoch slot writer", the current incarnation              |
| P m                           | hash   | replica id -> ReplicaMeta, JSON                                         |
| P q                           | hash   | slot -> sequence number of the last delta applied                       |
| P l <replica id>              | string | the lease, with a TTL: ReplicaLoad, JSON                                |
| P t                           | stream | ids "n-0" without holes; one field d: a record (records.py); capped     |
| P w                           | set    | slots that wait for their sweep                                         |
| P f                           | zset   | free slots by the time (ms) they were freed                             |
| P k                           | string | who sweeps, with a TTL                                                  |
| P u                           | stream | one field d: a batch of notes (notes.py); capped                        |
| P x, P y                      | hash   | router id -> its in-flight work; router id -> when it expires (ms)      |

A slot is one incarnation: it belongs to one (replica, epoch) since its last clear, and a claim or a clear takes a
fresh one. So forgetting everything is O(1), lookups drop it at once, and the blocks behind are swept by the reverse
set, O(own blocks). A freed slot rests for QUARANTINE_MS, longer than a reader keeps a roster, before its next use.

Tiers have key spaces of their own rather than more bits per slot: a fleet without offloading pays nothing for them
(the head says which are in use), and the bitmap of the device tier stays as small as in the measured layout.

Bit `slot` of a bitmap is bit `slot % 8` of byte `slot // 8`, so that int.from_bytes(value, "little") is the mask. There
are no trailing zero bytes and no empty bitmaps.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

import xxhash

from router.index.types import Tier

VERSION = 2
MAX_SLOTS = 4096
CHUNK = 512
"""Keys in one script call: about 1 ms of the server. At most 1024 (Lua's stack)."""
STREAM_CAP = 8192
"""Entries kept in the stream; at most 4 KiB each. A mirror that falls further behind bootstraps again."""
QUARANTINE_MS = 10_000


class Layout:
    """Key names of one pool.

    Example:
        >>> Layout("llama").head
        b'pr1:{2MHz0BMR}:h'
    """

    def __init__(self, pool: str) -> None:
        if not pool:
            raise ValueError("pool: the name of the pool (model and tenant) must not be empty")
        self.pool = pool
        tag = base64.urlsafe_b64encode(xxhash.xxh3_64_digest(pool.encode()))[:8]
        self.prefix = b"pr1:{" + tag + b"}:"
        self.head = self.prefix + b"h"
        self.stream = self.prefix + b"t"
        self.notes = self.prefix + b"u"

    def blocks(self, tier: Tier, chain: Sequence[int]) -> list[bytes]:
        """Bitmap keys of `chain` in one tier."""
        start = self.prefix + b"%d" % tier
        packed = struct.pack(f"<{len(chain)}Q", *chain)
        return [start + packed[at : at + 8] for at in range(0, len(packed), 8)]

    def reverse(self, tier: Tier, slot: int) -> bytes:
        """The reverse set of a slot in one tier."""
        return self.prefix + b"r%d%d" % (tier, slot)
