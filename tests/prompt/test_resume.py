"""A resumed render gives the text of a render from the start, whatever was rendered before."""

# ruff: noqa: E501  (templates)
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt.hard_templates import HARD

from router.prompt.history import Message, SharedList
from router.prompt.model import load_model
from router.prompt.resume import STEP
from router.prompt.scans import Idle
from router.prompt.template import ChatTemplate, TemplateError

FOLDER = Path(__file__).parent / "templates"
TEMPLATES = {**HARD, **{path.stem: path.read_text() for path in FOLDER.glob("*.jinja")}}
ROLES = ["user", "assistant", "tool", "system"]
TOOLS = [SharedList([{"type": "function", "function": {"name": f"f{i}"}} for i in range(n)]) for n in (0, 1, 3, 12, 16)]


def message(generator: random.Random) -> Message:
    content = generator.choice(["a", "bb", "", "stop", "x\ny ", "<|im_end|>", "é"])
    return Message({"role": generator.choice(ROLES), "content": content})


def outcome(render: Callable[..., str], *arguments: Any, **fields: Any) -> str | None:
    try:
        return render(*arguments, **fields)
    except TemplateError:
        return None


def compare(source: str, seed: int, steps: int) -> ChatTemplate:
    """Growing, branching, shrinking and repeated conversations; both renders must agree on each."""
    generator = random.Random(seed)
    resumed = ChatTemplate(source, {"bos_token": "<s>"})
    plain = ChatTemplate(source, {"bos_token": "<s>"}, max_snapshot_bytes=0)
    pool = [message(generator) for _ in range(4)]
    talks: list[list[Message]] = [[message(generator) for _ in range(generator.randrange(3 * STEP))]]
    for _ in range(steps):
        talk = list(generator.choice(talks))
        kind = generator.random()
        if kind < 0.6:
            new = [generator.choice(pool) if generator.random() < 0.3 else message(generator) for _ in range(3)]
            talk += new[: generator.randrange(4)]
        elif kind < 0.75:
            del talk[generator.randrange(len(talk) + 1) :]
        elif kind < 0.85 and talk:
            talk[generator.randrange(len(talk))] = message(generator)
        talks = [*talks[-4:], talk]
        fields: dict[str, Any] = {"add_generation_prompt": generator.random() < 0.8}
        if generator.random() < 0.3:
            fields["mode"] = generator.choice([1, True, "1", None, 1.0])
        if generator.random() < 0.2:
            fields["extra"] = {"x": generator.choice([1, 2, 0.0, -0.0])}
        tools = generator.choice([None, *TOOLS, list(TOOLS[2])])
        expected = outcome(plain.render, talk, tools, **fields)
        assert outcome(resumed.render, talk, tools, **fields) == expected
    return resumed


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=12)
@given(seed=st.integers(0, 1 << 30))
def test_resumed_text_is_the_whole_text(name: str, seed: int) -> None:
    compare(TEMPLATES[name], seed, 60)


def test_real_templates(templated_directory: Path) -> None:
    model = load_model(templated_directory, fast=False)
    assert model.template_source is not None
    for seed in range(12):
        compare(model.template_source, seed, 60)


def growing(source: str, tools: Any = None, count: int = 400) -> tuple[int, int]:
    """(iterations not run again, iterations) of a session that grows by two messages a step."""
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    talk = [Message({"role": "system", "content": "s"})]
    total = 0
    while len(talk) < count:
        talk = [*talk, Message({"role": "user", "content": "u"}), Message({"role": "assistant", "content": "a"})]
        template.render(talk, tools)
        total += len(talk)
    resumption = template._environment.resumption
    return (0 if resumption is None else resumption.snapshots.resumed), total


@pytest.mark.parametrize(
    "name",
    [
        *("last", "neighbours", "ahead", "counter", "rest", "macro", "cycle", "continue", "twice"),
        *("last question", "compares the length", "compares what it counts"),
        *("macro looks by place", "block of tools", "macro under a condition"),
    ],
)
def test_only_the_end_is_rendered_again(name: str) -> None:
    resumed, total = growing(TEMPLATES[name])
    assert resumed > 0.9 * total


def test_real_templates_resume(templated_directory: Path) -> None:
    source = load_model(templated_directory, fast=False).template_source
    assert source is not None
    resumed, total = growing(source)
    print(f"{templated_directory.name}: {resumed / total:.0%} of the messages not rendered again")
    assert resumed > 0.9 * total


@pytest.mark.parametrize(
    "source",
    [
        "{% set d = {'now': strftime_now} %}{% for m in messages %}{{ d.now('%f') }}{% endfor %}",
        "{% macro call(range) %}{{ range('%f') }}{% endmacro %}{% for m in messages %}{{ call(strftime_now) }}{% endfor %}",
    ],
)
def test_what_tells_the_time_is_rendered_anew(source: str) -> None:
    assert growing(source, count=50)[0] == 0


def test_snapshots_are_bounded() -> None:
    template = ChatTemplate(TEMPLATES["last"], max_snapshot_bytes=100_000)
    plain = ChatTemplate(TEMPLATES["last"], max_snapshot_bytes=0)
    resumption = template._environment.resumption
    assert resumption is not None
    for session in range(20):
        talk: list[Message] = []
        for step in range(40):
            talk = [*talk, Message({"role": "user", "content": f"{session} {step} " * 30})]
            assert template.render(talk) == plain.render(talk)
            assert resumption.snapshots.bytes <= 100_000
    assert len(resumption.snapshots) > 3


def test_messages_that_are_not_shared_are_rendered_anew() -> None:
    template = ChatTemplate(TEMPLATES["last"])
    for text in ("a", "b", "c"):
        talk = [{"role": "user", "content": text} for _ in range(20)]
        assert template.render(talk).count(f"user:{text}") == 20


def test_deep_variables_are_rendered_anew() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    source = (
        HARD["last"] + "{% set ns = namespace(x=none) %}{% for m in messages %}{% set ns.x = documents %}{% endfor %}"
    )
    template, plain = ChatTemplate(source), ChatTemplate(source, max_snapshot_bytes=0)
    talk = [Message({"role": "user", "content": "u"}) for _ in range(2 * STEP)]
    for fields in ({}, {"documents": deep}, {"variable": deep}) * 2:
        assert template.render(talk, **fields) == plain.render(talk, **fields)


def test_idle_messages_are_bounded_and_known_by_identity() -> None:
    idle = Idle(100_000)
    noted = [{"role": "tool", "content": f"{i}" * 50} for i in range(1_000)]
    for one in noted:
        idle.note(1, one)
        idle.note(1, one)
        assert idle.bytes <= 100_000
    assert idle.has(1, noted[-1])
    assert not idle.has(2, noted[-1])
    assert not idle.has(1, dict(noted[-1]))
    assert not idle.has(1, noted[0])
    assert sum(idle.has(1, one) for one in noted) > 100


def test_a_search_from_the_end_looks_at_a_message_once() -> None:
    """400 messages of tools behind the question: what was seen not to be one is passed over."""
    asked: list[str] = []

    class Telling(Message):
        def __getitem__(self, name: str) -> Any:
            asked.append(name)
            return super().__getitem__(name)

    template = ChatTemplate(HARD["last question"])
    talk: list[Message] = [Telling({"role": "user", "content": "q"})]
    counts = []
    for _ in range(100):
        talk = [*talk, *(Telling({"role": "tool", "content": "t"}) for _ in range(4))]
        asked.clear()
        template.render(talk)
        counts.append(len(asked))
    assert max(counts[20:]) < 100
