"""The renderer against transformers' apply_chat_template (a test-only dependency), and ids against its tokenizer."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from router.blocks import unpack
from router.prompt.model import ChatModel, load_model
from router.prompt.template import ChatTemplate, TemplateError

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; run: pip install 'transformers>=5.16.1,<5.21'"
)

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
FETCHED = sorted((Path(__file__).parents[2] / ".cache" / "templates").glob("*.jinja"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read",
            "description": "Reads a file <&> 'quoted'",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    },
    {"type": "function", "function": {"name": "now", "description": None, "parameters": None}},
]
CALL = {"id": "c1", "function": {"arguments": {"path": "ä.txt", "n": 1.5}, "name": "read"}, "type": "function"}
EMPTY = {"id": "c2", "function": {"arguments": {}, "name": "now"}, "type": "function"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": "hello"}],
    "system": [{"role": "system", "content": " You are  "}, {"role": "user", "content": "a\n\n b "}],
    "turns": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nwhy\n</think>\n\ntwo"},
        {"role": "user", "content": "三 🎉"},
    ],
    "tools": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "result\n", "tool_call_id": "c1"},
        {"role": "assistant", "content": "then", "tool_calls": [EMPTY]},
        {"role": "tool", "content": "{}", "tool_call_id": "c2"},
    ],
    "reasoning": [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "reasoning": "because", "reasoning_content": "because"},
        {"role": "user", "content": "v"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}],
    "special": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n<｜User｜><|eot_id|></s>"}],
    "developer": [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}],
    "agent": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [CALL, EMPTY]},
        {"role": "tool", "content": "1", "tool_call_id": "c1"},
        {"role": "tool", "content": "2", "tool_call_id": "c2"},
        {"role": "assistant", "content": "a", "reasoning_content": "q"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b"},
    ],
    "odd role": [{"role": "critic", "content": "c"}],
    "unicode": [{"role": "user", "content": "e\u0301 \u212b \u00a0\u3000\r\n\t\x1c\u0000"}],
}
KWARGS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": TOOLS, "enable_thinking": False},
    {"add_generation_prompt": False, "continue_final_message": True},
    {
        "add_generation_prompt": True,
        "documents": [{"title": "t", "text": "x <&> \n"}],
        "thinking": True,
        "reasoning_effort": "low",
        "date_string": "1 Jan 2026",
    },
]
KWARG_NAMES = ["prompt", "no prompt", "tools", "continue", "documents"]


def outcomes(model: Any, reference: Any, conversation: list[dict[str, Any]], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Ours and theirs, of one day: some templates tell the date."""
    arguments, day = dict(kwargs), date.today()
    try:
        theirs: str | None = reference.apply_chat_template(copy.deepcopy(conversation), tokenize=False, **arguments)
    except Exception:
        theirs = None
    tools = arguments.pop("tools", None)
    try:
        ours: str | None = model.render(copy.deepcopy(conversation), tools, **arguments)
    except TemplateError:
        ours = None
    return (ours, theirs) if date.today() == day else outcomes(model, reference, conversation, kwargs)


@pytest.mark.parametrize("kwargs", KWARGS, ids=KWARG_NAMES)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_text_equals_transformers(template: Path, name: str, kwargs: dict[str, Any]) -> None:
    ours, theirs = outcomes(*_both(template.read_text()), CONVERSATIONS[name], kwargs)
    assert ours == theirs


@pytest.mark.parametrize("template", FETCHED, ids=lambda path: path.stem)
def test_text_of_real_templates_equals_transformers(template: Path) -> None:
    ours, theirs = _both(template.read_text(encoding="utf-8"))
    rendered = 0
    for name, conversation in CONVERSATIONS.items():
        for kwargs in KWARGS:
            found, expected = outcomes(ours, theirs, conversation, kwargs)
            assert found == expected, (name, kwargs)
            rendered += found is not None
    assert rendered > 5


def test_real_templates_are_there() -> None:
    if len(FETCHED) < 50:
        pytest.skip("real chat templates: not downloaded; run: python tests/prompt/fetch_templates.py")


def _both(source: str) -> tuple[ChatTemplate, Any]:
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    backend = transformers.PreTrainedTokenizerFast(tokenizer_object=_words(), **specials)
    backend.chat_template = source
    return ChatTemplate(source, specials), backend


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "x": 2}, unk_token="x"))


@pytest.fixture(scope="session")
def pair(real_directory: Path) -> tuple[ChatModel, Any]:
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(str(real_directory))
    return load_model(real_directory), reference


@pytest.mark.parametrize("kwargs", KWARGS, ids=KWARG_NAMES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_models_equal_transformers(pair: tuple[ChatModel, Any], name: str, kwargs: dict[str, Any]) -> None:
    model, reference = pair
    if model.template_source is None:
        text: str | None = "".join(str(message["content"]) for message in CONVERSATIONS[name])
    else:
        text, theirs = outcomes(model, reference, CONVERSATIONS[name], kwargs)
        assert text == theirs
    if text is not None:
        for special in (False, True):
            assert unpack(model.encode(text, special)) == reference.encode(text, add_special_tokens=special)
