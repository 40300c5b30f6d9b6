"""What is compared: `ROUTER[:POLICY][,SETTING=VALUE...]`, and a label for the tables.

| written | router |
|---|---|
| `prefix`, `round_robin`, `least_load`, `session`, ... | prefix-router under that policy; settings become `--set` |
| `config:FILE` | prefix-router with that configuration file; its replicas are the comparison's |
| `nginx:round_robin`, `nginx:least_conn`, `nginx:session` | nginx; `session` hashes the session header |
| `sglang-router:POLICY`, `smg:POLICY`, `vllm-router:POLICY` | that peer; settings become its flags |

>>> contender("sglang-router:cache_aware,balance-abs-threshold=4").settings
{'balance-abs-threshold': '4'}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.types import WorkloadError
from router.routing.policies import POLICIES

OURS = "prefix-router"
CONFIG = "config"
NGINX_POLICIES = ("round_robin", "least_conn", "session")
PEERS = ("sglang-router", "smg", "vllm-router")

TUNED = "balance-abs-threshold=4,balance-rel-threshold=1.1"
"""The default, 64 requests of difference, is never reached on a small fleet; at 4 the cached replica is left early."""

DEFAULT = (
    "prefix",
    "round_robin",
    "least_load",
    "session",
    "nginx:round_robin",
    "nginx:least_conn",
    "nginx:session",
    "sglang-router:cache_aware",
    f"sglang-router:cache_aware,{TUNED}",
    "smg:cache_aware",
    f"smg:cache_aware,{TUNED}",
    "vllm-router:cache_aware",
    f"vllm-router:cache_aware,{TUNED}",
    "vllm-router:kv_aware",
    "vllm-router:sticky_least_loaded",
)


@dataclass(frozen=True, slots=True)
class Contender:
    """router: `prefix-router`, `config`, `nginx` or one of PEERS; policy: its policy, or the path of a config."""

    spec: str
    router: str
    policy: str
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.router in (OURS, CONFIG)

    @property
    def label(self) -> str:
        """For tables: short, and the same for the same spec."""
        base = self.spec.partition(",")[0]
        if not self.settings:
            return base
        if self.spec.endswith(f",{TUNED}"):
            return f"{base} (tuned)"
        return f"{base} ({', '.join(f'{name}={value}' for name, value in self.settings.items())})"


def contender(spec: str) -> Contender:
    """Raises WorkloadError that names the spec and says what is known."""
    name, *settings = spec.split(",")
    parsed: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key or not value:
            raise WorkloadError(f"--routers {spec}: settings are written SETTING=VALUE, got {setting!r}")
        parsed[key.removeprefix("--")] = value
    router, colon, policy = name.partition(":")
    if not colon:
        if router not in POLICIES:
            raise WorkloadError(f"--routers {spec}: {router!r} is no policy of ours; one of {', '.join(POLICIES)}")
        return Contender(spec, OURS, router, parsed)
    if router == CONFIG:
        if not Path(policy).is_file():
            raise WorkloadError(f"--routers {spec}: there is no configuration file {policy!r}")
        return Contender(spec, CONFIG, policy, parsed)
    if router == "nginx":
        if policy not in NGINX_POLICIES or parsed:
            raise WorkloadError(f"--routers {spec}: nginx takes {', '.join(NGINX_POLICIES)}, and no settings")
        return Contender(spec, router, policy)
    if router not in PEERS or not policy:
        known = ", ".join(f"{peer}:POLICY" for peer in ("nginx", *PEERS))
        raise WorkloadError(f"--routers {spec}: give a policy of ours, config:FILE, or one of {known}")
    return Contender(spec, router, policy, parsed)


def contenders(specs: Sequence[str]) -> list[Contender]:
    """Each spec once. Raises WorkloadError for two that are the same."""
    if len(set(specs)) < len(specs):
        twice = next(spec for spec in specs if specs.count(spec) > 1)
        raise WorkloadError(f"--routers {twice} is given twice")
    return [contender(spec) for spec in specs]
