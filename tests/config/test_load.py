"""Configuration: what is accepted, and that every refusal names place, key and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import ConfigError, load_config
from router.config.reference import render
from router.routing.cost import Weights
from router.routing.policies import Prefix
from router.settings import make_policy


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "router.yaml"
    path.write_text(text)
    return path


def test_defaults_are_a_valid_configuration() -> None:
    assert load_config().routing.policy == "prefix"


def test_the_router_and_a_replay_weigh_alike_by_default() -> None:
    policy = make_policy(load_config().routing)
    assert isinstance(policy, Prefix)
    assert policy.weights == Weights()


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, "listen: {port: 1}\nrouting: {policy: random}\nlimits: {max_body_mb: 3}\n")
    env = {"PREFIX_ROUTER_LISTEN__PORT": "2", "PREFIX_ROUTER_ROUTING__POLICY": "session", "PATH": "/bin"}
    config = load_config(path, env, [("listen.port", 3)])
    assert (config.listen.port, config.routing.policy, config.limits.max_body_mb) == (3, "session", 3)


def test_a_list_is_overridden_whole() -> None:
    config = load_config(overrides=[("replicas", [{"url": "http://a:1"}])])
    assert config.replicas[0].url == "http://a:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen: {prt: 1}", ["router.yaml:1", "listen.prt", "unknown key", "did you mean `port`"]),
        ("\nrouting:\n  polcy: prefix", ["router.yaml:3", "routing.polcy", "`policy`"]),
        ("zzz: 1", ["router.yaml:1", "zzz", "known keys:", "replicas"]),
        ("listen: {port: x}", ["router.yaml:1", "listen.port", "expected `int`, got `str`"]),
        ("listen: {port: 70000}", ["listen.port", "<= 65535"]),
        ("routing: {policy: fast}", ["routing.policy", "'fast'", "One of:", "round_robin"]),
        ("health: {interval_s: 0}", ["health.interval_s", "> 0"]),
        ("replicas:\n- id: a", ["router.yaml:2", "replicas[0].url", "required"]),
        ("replicas:\n- url: ftp://x", ["router.yaml:2", "replicas[0].url", "Base URL"]),
        ("replicas:\n- url: http://a:1\n- url: http://a:1/", ["router.yaml:3", "`a:1` is given twice", "own id"]),
        ("models:\n- name: m\n- name: m", ["router.yaml:3", "`m` is given twice"]),
        ("replicas:\n- url: http://a:1\n  evnts: {}", ["router.yaml:3", "replicas[0].evnts", "`events`"]),
        ("replicas:\n- url: http://a:1\n  events: {endpoint: 'http://a'}", ["events.endpoint", "ZMQ PUB"]),
        ("listen: {port: 1}\nlisten: {port: 2}", ["router.yaml:2", "given twice"]),
        ("- a", ["router.yaml:1", "mapping"]),
        ("a: [", ["router.yaml:", "not valid YAML"]),
        ("listen: 5", ["router.yaml:1", "listen", "expected `object`"]),
    ],
)
def test_refusals_name_place_key_and_fix(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text))
    for part in expected:
        assert part in str(error.value)


def test_an_environment_variable_is_named_as_the_place() -> None:
    with pytest.raises(ConfigError, match=r"environment variable PREFIX_ROUTER_LISTEN__PORT: listen\.port: expected"):
        load_config(env={"PREFIX_ROUTER_LISTEN__PORT": "many"})


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read: No such file.*--config"):
        load_config(tmp_path / "none.yaml")


def test_the_reference_in_the_docs_is_the_codes() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == render()


def test_every_setting_has_a_meaning() -> None:
    for line in render().splitlines():
        if line.startswith("| `"):
            assert line.split("|")[4].strip(), line
