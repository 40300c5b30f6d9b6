"""`prefix-router loadtest compare`: what is compared, with real routers before simulated replicas, and the figures."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.compare import command
from loadtest.compare.contenders import DEFAULT, PEERS, TUNED, contender, contenders
from loadtest.compare.exact import tokenized
from loadtest.compare.fleet import Hardware, simulated
from loadtest.compare.oracle import Sent, reachable_hit_rate
from loadtest.compare.outcome import Outcome, Row, Value, standings
from loadtest.compare.peers import VERSIONS
from loadtest.compare.routers import Launcher
from loadtest.compare.scenarios import SCENARIOS, scenario
from loadtest.compare.table import write
from loadtest.ideal import ideal_hit_rate
from loadtest.processes import Child, StartError
from loadtest.replay.pool import IdPool
from loadtest.run import run_workload
from loadtest.types import PrefixChain, WorkloadError
from loadtest.workloads import agents
from replica.simulator.sequence import Sequence

PEERS_FOLDER = Path(__file__).parents[2] / ".cache" / "peers"
# Not on PATH for every user.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def compare(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(flags))


def test_contenders_are_written_like_this() -> None:
    ours = contender("prefix,routing.decode_cost_tokens=256")
    assert (ours.ours, ours.policy, ours.settings) == (True, "prefix", {"routing.decode_cost_tokens": "256"})
    tuned = contender(f"smg:cache_aware,{TUNED}")
    assert (tuned.router, tuned.policy, tuned.label) == ("smg", "cache_aware", "smg:cache_aware (tuned)")
    assert tuned.settings == {"balance-abs-threshold": "4", "balance-rel-threshold": "1.1"}
    assert len({each.label for each in contenders(DEFAULT)}) == len(DEFAULT)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--routers", "best"), "'best' is no policy of ours; one of prefix"),
        (("--routers", "haproxy:leastconn"), "give a policy of ours, config:FILE, or one of nginx:POLICY"),
        (("--routers", "config:/nowhere.yaml"), "there is no configuration file '/nowhere.yaml'"),
        (("--routers", "nginx:ip_hash"), "nginx takes round_robin, least_conn, session"),
        (("--routers", "prefix,fast"), "settings are written SETTING=VALUE, got 'fast'"),
        (("--routers", "prefix", "prefix"), "prefix is given twice"),
        (("--scenario", "rush"), "--scenario knows agents, sessions"),
        (("--repeats", "0"), "--repeats must be above 0"),
        (("--replica", "10.0.0.7:8000"), "--replica must start with http://"),
        (("--replica", "http://127.0.0.1:9", "--scenario", "slow"), "--scenario slow needs simulated replicas"),
        (("--goodput", "ttft=3"), "--goodput takes METRIC:MS"),
    ],
)
def test_bad_flags(flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*flags) == 2
    assert says in capsys.readouterr().err


def test_what_cannot_be_had_is_skipped_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    said: list[str] = []
    launcher = Launcher(tmp_path, said.append)
    usable = launcher.prepare(contenders(["smg:cache_aware", "prefix", "smg:round_robin"]))
    assert [each.label for each in usable] == ["prefix"]
    assert set(launcher.skipped) == {"smg:cache_aware", "smg:round_robin"}
    assert any(line.startswith(f"SKIPPED: smg {VERSIONS['smg']} cannot be installed by pip") for line in said)


async def test_a_router_that_ends_says_its_last_words() -> None:
    child = Child("it", ["sh", "-c", "echo no such option; exit 3"])
    with pytest.raises(StartError, match=r"(?s)it ended with status 3:.*no such option"):
        async with child:
            await child.answers("http://127.0.0.1:9/")


async def test_a_router_that_does_not_get_ready_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Child("it", ["sh", "-c", "echo warming up; exec sleep 600"]) as child:
        assert await child.printed("(warming) up") == ["warming"]
        monkeypatch.setattr("loadtest.processes.START_S", 0.1)
        with pytest.raises(StartError, match=r"(?s)it did not say 'listening on' in 0.1 s;.*warming up"):
            await child.printed("listening on")


def test_every_scenario_has_exact_chains_and_room() -> None:
    for name in SCENARIOS:
        ready = scenario(name).prepared(time_scale=2.0)
        plain = scenario(name)
        assert ready.workload.requests == plain.workload.requests
        step = ready.workload.sessions[0].steps[-1]
        assert step.prompt.chain().exact
        assert step.prompt.body() == plain.workload.sessions[0].steps[-1].prompt.body()
        assert ready.goodput["ttft"] == 2 * plain.goodput["ttft"]
        largest = max(len(s.prompt.chain().keys) for each in ready.workload.sessions for s in each.steps)
        assert ready.kv_blocks > largest


async def test_the_ideal_is_what_one_replica_reaches() -> None:
    """One replica, one request at a time: the engine's own count is the ideal, to the token."""
    workload = tokenized(agents(sessions=4, steps=3, groups=2, system_tokens=60, output_tokens=2))
    async with simulated(Hardware(1, "instant"), 4096, {}) as fleet:
        result = await run_workload(fleet.urls[0], workload, model=fleet.model, in_flight=1, engine_metrics=fleet.urls)
    assert result.summary.ideal_exact
    assert result.engines is not None
    assert result.engines.hit_rate == pytest.approx(result.summary.ideal_hit_rate, abs=1e-12)


BLOCKS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


def chained(blocks: list[int], rest: int) -> PrefixChain:
    keys = array("Q", [])
    for block in blocks:
        keys.append(hash((keys[-1] if keys else 0, block)) & 0xFFFFFFFF)
    return PrefixChain(keys, 4, 4 * len(blocks) + rest, exact=True)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), BLOCKS, st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(7, 40),
)
@settings(max_examples=200)
def test_the_oracle_never_beats_the_ideal(sent: list[tuple[str, list[int], int]], replicas: int, room: int) -> None:
    requests = [Sent(session, chained(blocks, rest), 1) for session, blocks, rest in sent]
    ideal = ideal_hit_rate((request.chain, None) for request in requests)
    assert ideal is not None
    pressed = reachable_hit_rate(requests, replicas, room)
    assert pressed is not None
    assert pressed <= ideal + 1e-9
    assert reachable_hit_rate(requests, replicas, 10_000) == pytest.approx(ideal)


def test_the_oracle_keeps_what_is_asked_for_again() -> None:
    """Two agents in turn, two replicas with room for one each: a perfect router parts them, one replica cannot."""
    a, b = [Sent(name, chained([letter] * 4, 1), 1) for letter, name in ((1, "a"), (2, "b"))]
    requests = [a, b] * 5
    assert reachable_hit_rate(requests, 2, 4) == pytest.approx(0.8 * 16 / 17)
    assert reachable_hit_rate(requests, 1, 4) == 0.0


def test_the_oracle_is_reached_by_the_engines_own_pool() -> None:
    """Dealt placement, replayed on the simulator's block pool, finds what the oracle's caches find."""
    ready = scenario("sequential").prepared(1.0)
    sessions = ready.workload.sessions
    sent = [
        Sent(session.id, session.steps[k].prompt.chain(), session.steps[k].max_tokens)
        for k in range(len(sessions[0].steps))
        for session in sessions
    ]
    pools = [IdPool(ready.kv_blocks, 16) for _ in range(2)]
    homes = {session.id: pools[place % 2] for place, session in enumerate(sessions)}
    found = total = 0
    for number, request in enumerate(sent):
        keys = [*request.chain.keys, *range(-10 * number - 10, -10 * number)]
        sequence = Sequence(request.chain.total, request.output, keys=keys)
        pool = homes[request.session]
        assert pool.admit(sequence)
        found += sequence.computed
        total += request.chain.total
        sequence.computed = request.chain.total + request.output - 1
        assert pool.grow(sequence, sequence.computed)
        pool.release(sequence, finished=True)
    assert reachable_hit_rate(sent, 2, ready.kv_blocks) >= found / total - 0.002


def row(spec: str, p99: tuple[float, float, float], goodput: float, share: float = 1.0, errors: int = 0) -> Row:
    def value(*numbers: float) -> Value:
        return Value(*numbers) if len(numbers) == 3 else Value(numbers[0], numbers[0], numbers[0])

    return Row(
        contender(spec), [], value(share), value(share), None, value(*p99), value(*p99), None, value(goodput),
        None, None, None, errors,
    )  # fmt: skip


def test_standing_is_said_without_flattery() -> None:
    rows = [
        row("prefix", (0.200, 0.190, 0.210), 0.95, share=0.96),
        row("nginx:session", (0.205, 0.200, 0.300), 0.97),
        row("round_robin", (0.195, 0.150, 0.209), 0.90),
        row("least_load", (0.1, 0.1, 0.1), 1.0, errors=3),
    ]
    answers = standings(Outcome(scenario("agents"), rows), write)
    assert [answer.verdict for answer in answers] == ["no", "tie", "no"]
    assert "round_robin 195 (150-209)" in answers[1].detail
    assert "nginx:session 97.0%" in answers[2].detail


FAST = ("--scenario", "sequential", "--time-model", "instant", "--replicas", "2", "--repeats", "1")


def test_our_policies_and_the_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, html, tables = (tmp_path / name for name in ("c.json", "c.html", "c.md"))
    config = tmp_path / "router.yaml"
    config.write_text("routing: {policy: least_load}\n")
    code = compare(
        *FAST, "--routers", "prefix", "session", f"config:{config}", "--json", str(saved), "--html", str(html),
        "--markdown", str(tables),
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    data = json.loads(saved.read_text())
    [result] = data["scenarios"]
    assert [each["errors"] for each in result["routers"]] == [0, 0, 0]
    for each in result["routers"]:
        [run] = each["runs"]
        assert run["result"]["completed"] == 96
        assert 0 < run["possible_hit_rate"] <= run["result"]["ideal_cache_hit_rate"]
        assert run["hit_rate"] == pytest.approx(run["result"]["cache_hit_rate"])
        assert sum(share["requests"] for share in run["result"]["replicas"].values()) == 96
        assert each["cpu_ms"]["median"] > 0
    assert [each["spec"] for each in result["routers"]] == ["prefix", "session", f"config:{config}"]
    assert re.search(r"prefix: at least 97% of the possible hit rate: (YES|NO) \(", out)
    page = html.read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import", page)
    assert "| prefix | " in tables.read_text()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
def test_nginx(tmp_path: Path) -> None:
    saved = tmp_path / "c.json"
    routers = ("nginx:round_robin", "nginx:least_conn", "nginx:session")
    assert compare(*FAST, "--routers", *routers, "--json", str(saved)) == 0
    results = json.loads(saved.read_text())["scenarios"][0]["routers"]
    assert [(each["router"], each["errors"]) for each in results] == [(name, 0) for name in routers]
    assert results[0]["runs"][0]["result"]["stickiness"] is not None


@pytest.mark.parametrize("peer", [*PEERS, "vllm-router:kv_aware"])
def test_peers(peer: str, tmp_path: Path) -> None:
    name, _, policy = peer.partition(":")
    if not (PEERS_FOLDER / f"{name}-{VERSIONS[name]}" / "installed").exists():
        pytest.skip(f"{name} is not installed in .cache/peers (tests/loadtest/fetch_peers.py)")
    saved = tmp_path / "c.json"
    spec = f"{name}:{policy or 'cache_aware'}"
    assert compare(*FAST, "--routers", spec, "--cache", str(PEERS_FOLDER), "--json", str(saved)) == 0
    [result] = json.loads(saved.read_text())["scenarios"][0]["routers"]
    assert result["errors"] == 0
    assert result["runs"][0]["result"]["cache_hit_rate"] > 0


def test_bad_scenario_name_is_refused() -> None:
    with pytest.raises(WorkloadError, match="knows agents"):
        scenario("rush")
