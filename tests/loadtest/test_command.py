"""`prefix-router loadtest` end to end: report block, JSON, HTML, exit codes, messages for bad flags."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from loadtest import command


def loadtest(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(flags))


SMALL = ("--dataset", "agents", "--num-sessions", "4", "--steps", "3", "--no-progress")


def test_reports(engine_in_thread: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_in_thread
    saved, page = tmp_path / "r.json", tmp_path / "r.html"
    engine.cached = lambda number: 100
    code = loadtest(
        *SMALL, "--base-url", engine.url + "/v1", "--goodput", "ttft:60000", "--metric-percentiles", "50,99.9",
        "--engine-metrics-url", engine.url, "--save-detailed", "--result-filename", str(saved), "--html", str(page),
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "============ Serving Benchmark Result ============" in out
    data = json.loads(saved.read_text())
    rate = 1200 / engine.queried
    assert data["cache_hit_rate"] == pytest.approx(rate)
    assert data["engines"]["cache_hit_rate"] == pytest.approx(rate)
    assert (data["completed"], data["failed"], data["model_id"]) == (12, 0, "tiny")
    assert data["p99.9_ttft_ms"] >= data["median_ttft_ms"] > 0
    assert [row["requests"] for row in data["steps"]] == [4, 4, 4]
    assert len(data["requests"]) == 12
    assert re.search(rf"Cache hit rate: +{rate:.1%}", out)
    assert re.search(rf"Prefill tokens computed: +{engine.queried - 1200}\b", out)
    text = page.read_text()
    assert f"{rate:.1%}" in text
    assert f"{engine.queried - 1200:,}" in text
    assert text.count("<svg") == 5
    assert "prefers-color-scheme:dark" in text
    outside = r"<script|<link|<img|src=|href=|url\(|@import|https?://(?!127)"
    assert not re.search(outside, text)
    assert "nan" not in text.lower()


def test_unknown_is_said_so(engine_in_thread: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine_in_thread.cached = lambda number: None
    page = tmp_path / "r.html"
    assert loadtest(*SMALL, "--base-url", engine_in_thread.url, "--no-stream", "--html", str(page)) == 0
    out = capsys.readouterr().out
    assert re.search(r"Cache hit rate: +unknown", out)
    assert re.search(r"Mean TTFT \(ms\): +unknown", out)
    assert "reports no cached tokens" in page.read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--dataset", "agents", "--crowd-share", "1"), "--crowd-share does not apply to --dataset agents"),
        (("--dataset", "hash-trace"), "needs --dataset-path FILE"),
        (("--dataset", "agents", "--dataset-path", "x"), "takes no --dataset-path"),
        (("--goodput", "ttft=3"), "--goodput takes METRIC:MS"),
        (("--goodput", "itl:3"), "--goodput knows ttft, tpot, e2el, not 'itl'"),
        (("--metric-percentiles", "101"), "between 0 and 100"),
        (("--percentile-metrics", "foo"), "not 'foo'"),
        (("--request-rate", "0"), "--request-rate must be above 0"),
        (("--base-url", "localhost:8000"), "must start with http://"),
        (("--extra-body", "[]"), "must be a JSON object"),
        (("--num-sessions", "0"), "--num-sessions must be at least 1"),
        (("--speed-up", "0"), "speed-up must be above 0"),
    ],
)
def test_bad_flags(flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert loadtest(*flags) == 2
    assert says in capsys.readouterr().err


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert loadtest(*SMALL, "--base-url", "http://127.0.0.1:9") == 1
    assert "is the router running?" in capsys.readouterr().err
    assert loadtest(*SMALL, "--base-url", "http://127.0.0.1:9", "--model", "m") == 1
    assert "no request succeeded" in capsys.readouterr().err
