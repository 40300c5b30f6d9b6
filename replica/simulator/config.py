"""What one simulated replica is: every knob, with the defaults of a small vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from .cache import BlockPool, Cache
from .radix import RadixCache
from .timing import TimeModel, time_model

MODEL_DIR = Path(__file__).parent / "model"
KINDS = ("vllm", "sglang", "tgi")


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """Raises ValueError that names the field."""

    model: str = "sim"
    model_dir: Path = MODEL_DIR
    kind: str = "vllm"
    aliases: tuple[str, ...] = ()
    """Further names of the model (vLLM's --served-model-name takes several)."""
    loras: tuple[str, ...] = ()
    block_size: int = 16
    kv_blocks: int = 2048
    max_model_len: int = 131_072
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_queued: int = 0
    default_max_tokens: int = 16
    timing: TimeModel = field(default_factory=lambda: time_model("8b-h100"))
    hash_seed: bytes | None = None

    host: str = "127.0.0.1"
    port: int = 0
    keep_alive: float = 5.0
    report_cached_tokens: bool = True
    scale_out: bool = True
    """vLLM's --enable-scale-out: the render endpoints answer."""
    record_requests: int = 0
    """Keep the last N requests for GET /sim/requests; 0: none."""
    replica_header: str = ""
    """Name of a response header that tells host:port of the replica, for load tests; empty: none, as real engines."""

    events: bool = True
    endpoint: str = "tcp://127.0.0.1:*"
    replay_endpoint: str | None = "tcp://127.0.0.1:*"
    dialect: str = ""
    """Empty: `map` for vLLM, `sglang-map` for SGLang."""
    bytes_hashes: bool = False
    replay_frames: int = 4
    topic: str = "kv-events"
    buffer_steps: int = 10_000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        if self.kv_blocks < 1:
            raise ValueError(f"kv_blocks must be at least 1, got {self.kv_blocks}")

    @property
    def publishes(self) -> bool:
        return self.events and self.kind != "tgi"

    @property
    def wire_dialect(self) -> str:
        return self.dialect or ("sglang-map" if self.kind == "sglang" else "map")

    @property
    def context_limit(self) -> int:
        """Tokens of prompt and answer together: the model's limit, or the whole cache if that is smaller."""
        return min(self.max_model_len, self.kv_blocks * self.block_size)

    def new_cache(self) -> Cache:
        if self.kind == "vllm":
            return BlockPool(self.kv_blocks, self.block_size, seed=self.hash_seed)
        tgi = self.kind == "tgi"
        return RadixCache(self.kv_blocks, self.block_size, seed=self.hash_seed, prompt_only=tgi)

    def with_ports(self, index: int) -> ReplicaConfig:
        """The replica `index` places further: its port, when ports are fixed."""
        return replace(self, port=self.port + index if self.port else 0)
