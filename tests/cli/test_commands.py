"""The command line as a user meets it: real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from router.cli import COMMANDS

ROUTER = [sys.executable, "-m", "router.cli"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ROUTER, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )


def test_help_names_every_command() -> None:
    said = run("--help").stdout
    for command in COMMANDS:
        assert command in said


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_examples(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"prefix-router {command}" in done.stdout
    assert "example" in done.stdout.lower()


def test_check_config(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("replicas:\n- url: http://127.0.0.1:1\n")
    done = run("check-config", str(good), PREFIX_ROUTER_LISTEN__PORT="7777")
    assert done.returncode == 0
    assert "port: 7777" in done.stdout and "url: http://127.0.0.1:1" in done.stdout
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    assert run("check-config", "--quiet", str(again)).returncode == 0, "what it prints is a configuration"
    bad = tmp_path / "bad.yaml"
    bad.write_text("replicas:\n- url: http://127.0.0.1:1\n  engin: vllm\n")
    done = run("check-config", str(bad))
    assert done.returncode == 2
    assert "bad.yaml:3: replicas[0].engin: unknown key; did you mean `engine`?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve"], "no replicas: name at least one with --replica"),
        (["serve", "--replica", "nonsense"], "replicas[0].url"),
        (["serve", "--config", "/nonexistent.yaml"], "can't be read"),
        (["serve", "--replica", "http://127.0.0.1:1", "--set", "x"], "KEY=VALUE"),
        (["serve", "--replica", "http://127.0.0.1:1", "--set", "routing.polcy=x"], "did you mean `policy`"),
        (["agent", "--engine-url", "http://127.0.0.1:1", "--redis-url", "http://x"], "redis"),
    ],
)
def test_mistakes_are_named_without_a_traceback(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_over_simulated_replicas_starts_answers_and_drains() -> None:
    with subprocess.Popen(
        [*ROUTER, "simulate", "--replicas", "2", "--port", "0", "--time-model", "instant"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as simulator:  # fmt: skip
        assert simulator.stdout is not None
        urls: list[str] = []
        while len(urls) < 2:
            line = simulator.stdout.readline()
            assert line, "the simulator ended"
            found = re.match(r"\s+(http://127\.0\.0\.1:\d+)\s", line)
            urls += [found[1]] if found else []
        flags = [flag for url in urls for flag in ("--replica", url)]
        with subprocess.Popen(
            [*ROUTER, "serve", *flags, "--port", "0", "--admin-port", "0", "--access-log"],
            stderr=subprocess.PIPE, text=True,
        ) as router:  # fmt: skip
            assert router.stderr is not None
            url = ""
            while not url:
                line = router.stderr.readline()
                assert line, "the router ended"
                url = line.split("listening on ")[1].strip() if "listening on " in line else ""
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{url}/ready", timeout=60).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            body = json.dumps({"model": "sim", "messages": [{"role": "user", "content": "secret text"}]}).encode()
            request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200
                assert answer.headers["x-prefix-router-replica"]
            router.send_signal(signal.SIGTERM)
            log = router.stderr.read()
            assert router.wait(timeout=60) == 0
        simulator.send_signal(signal.SIGTERM)
        assert simulator.wait(timeout=60) == 0
    entries = [line for line in log.splitlines() if '"path":"/v1/chat/completions"' in line]
    assert len(entries) == 1
    entry = json.loads(entries[0][entries[0].index("{") :])
    assert entry["status"] == 200 and entry["replica"] in [each.removeprefix("http://") for each in urls]
    assert "secret text" not in log
