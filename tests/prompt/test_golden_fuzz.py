"""Random conversations through real models' templates: the text is transformers', or both refuse.

Longer: PREFIX_ROUTER_FUZZ=2000 pytest tests/prompt/test_golden_fuzz.py (conversations per template; 25 by default).
"""

from __future__ import annotations

import copy
import json
import os
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from router.prompt.history import History
from router.prompt.template import ChatTemplate, TemplateError

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; run: pip install 'transformers>=5.16.1,<5.21'"
)

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / ".cache" / "templates"
OURS = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
ROUNDS = int(os.environ.get("PREFIX_ROUTER_FUZZ", "25"))
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEXTS = ["hello", "", " ", "a\n\n b \n", "三 世界 🎉", "e\u0301 \u212b\u00a0\u3000", "\r\n\t\x1c\x00", "{{ x }}{% y %}"]
TEXTS += ["<&>'\"\\/", "<|im_end|>\n<|im_start|>system\n", "</s><s>[INST]<|eot_id|>", "<think>\nwhy\n</think>\n\nso"]
TEXTS += ["<think>", "</think>x", "<tool_response>\nr\n</tool_response>", '{"a": 1.0, "b": [null, true]}', "x" * 300]
TEXTS += ["CONTINUE_FINAL_MESSAGE_TAG"]
ROLES = ["user", "assistant", "user", "assistant", "tool", "system", "developer", "critic"]
VARIABLES: dict[str, list[Any]] = {
    "enable_thinking": [True, False],
    "thinking": [True, False],
    "reasoning_effort": ["low", "high", "none"],
    "date_string": ["1 Jan 2026", ""],
    "preserve_thinking": [True, False],
    "clear_thinking": [True, False],
    "add_vision_id": [True, False],
    "custom_system_prompt": ["be kind"],
}


def arguments(chance: random.Random) -> dict[str, Any]:
    values: list[Any] = [1, -2.5, 1e20, True, None, "ä\n", [], {"z": 1, "a": {"b": []}}, "<tag>"]
    return {f"k{i}": chance.choice(values) for i in range(chance.randrange(3))}


def tool(chance: random.Random) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    for i in range(chance.randrange(3)):
        kind = chance.choice(["string", "number", "array", "object", ["string", "null"]])
        parameters["properties"][f"p{i}"] = {"type": kind, "description": chance.choice(TEXTS)}
        if chance.random() < 0.3:
            parameters["properties"][f"p{i}"]["enum"] = ["a", "b"]
    if chance.random() < 0.5:
        parameters["required"] = list(parameters["properties"])[:1]
    function = {"name": f"f{chance.randrange(3)}", "description": chance.choice(TEXTS), "parameters": parameters}
    if chance.random() < 0.15:
        function |= {"description": None, "parameters": None}  # as vLLM dumps what a client left out
    return {"type": "function", "function": function}


def content(chance: random.Random) -> Any:
    if chance.random() < 0.15:
        return [{"type": "text", "text": chance.choice(TEXTS)} for _ in range(chance.randrange(3))]
    return chance.choice(TEXTS)


def message(chance: random.Random, role: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": role, "content": content(chance)}
    if role == "assistant":
        if chance.random() < 0.4:
            calls = [
                {
                    "id": f"call{i:05d}",
                    "function": {"arguments": arguments(chance), "name": f"f{i}"},
                    "type": "function",
                }
                for i in range(1 + chance.randrange(2))
            ]
            made["tool_calls"] = calls
        if chance.random() < 0.3:
            made["reasoning"] = made["reasoning_content"] = chance.choice(TEXTS)
    if role == "tool":
        made["tool_call_id"] = f"call{chance.randrange(2):05d}"
    if chance.random() < 0.1:
        made["name"] = "bob"
    return made


def conversation(chance: random.Random) -> list[dict[str, Any]]:
    """Half of them as an agent's, which all templates take; the others in any order."""
    if chance.random() < 0.5:
        roles = [chance.choice(ROLES) for _ in range(chance.randrange(1, 7))]
        return [message(chance, role) for role in roles]
    made = [message(chance, "system")] if chance.random() < 0.6 else []
    for _ in range(chance.randrange(1, 4)):
        made.append(message(chance, "user"))
        made.append(message(chance, "assistant"))
        made += [message(chance, "tool") for _ in made[-1].get("tool_calls", [])]
    return made if chance.random() < 0.5 else [*made, message(chance, "user")]


def fields(chance: random.Random) -> dict[str, Any]:
    chosen: dict[str, Any] = {"add_generation_prompt": chance.random() < 0.7}
    if not chosen["add_generation_prompt"] and chance.random() < 0.5:
        chosen["continue_final_message"] = True
    if chance.random() < 0.5:
        chosen["tools"] = [tool(chance) for _ in range(1 + chance.randrange(3))]
    if chance.random() < 0.15:
        chosen["documents"] = [{"title": chance.choice(TEXTS), "text": chance.choice(TEXTS), "content": "c"}]
    for name, values in VARIABLES.items():
        if chance.random() < 0.15:
            chosen[name] = chance.choice(values)
    return chosen


def _backend() -> Any:
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **SPECIALS)


def compare(sources: dict[str, str], seed: int, rounds: int) -> int:
    """Renders `rounds` conversations both ways; how many both took. Two of three extend the one before."""
    backend = _backend()
    backend.chat_template = sources if len(sources) > 1 else sources["default"]
    ours = {name: ChatTemplate(source, SPECIALS, name=name) for name, source in sources.items()}
    history = History()
    chance = random.Random(seed)
    equal = 0
    talk: list[dict[str, Any]] = []
    for number in range(rounds):
        talk = conversation(chance) if number % 3 == 0 or len(talk) > 40 else [*talk, *conversation(chance)]
        chosen, day = fields(chance), date.today()
        try:
            theirs: str | None = backend.apply_chat_template(
                copy.deepcopy(talk), tokenize=False, **copy.deepcopy(chosen)
            )
        except Exception:
            theirs = None
        tools = chosen.pop("tools", None)
        shared = history.decode(json.dumps({"messages": talk}).encode())["messages"]
        template = ours["tool_use" if tools and "tool_use" in ours else "default"]
        try:
            mine: str | None = template.render(shared, tools, **chosen)
        except TemplateError:
            mine = None
        # Some templates tell the date.
        assert mine == theirs or date.today() != day, (
            f"seed {seed}, conversation {number}: {json.dumps([talk, tools, chosen])[:2000]}"
        )
        equal += mine is not None
    return equal


def _fetched() -> list[Path]:
    return sorted(FETCHED.glob("*.jinja"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_templates(path: Path) -> None:
    assert compare({"default": path.read_text()}, 1, 4 * ROUNDS) > 0


@pytest.mark.parametrize("path", _fetched(), ids=lambda path: path.stem)
def test_real_templates(path: Path) -> None:
    compare({"default": path.read_text(encoding="utf-8")}, 2, ROUNDS)


def test_named_templates_are_chosen_by_tools() -> None:
    sources = {path.stem: path.read_text() for path in OURS}
    assert compare({"default": sources["chatml"], "tool_use": sources["llama3_like"]}, 3, 4 * ROUNDS) > ROUNDS


def test_real_models(templated_directory: Path) -> None:
    config = json.loads((templated_directory / "tokenizer_config.json").read_text())
    assert compare({"default": config["chat_template"]}, 4, 4 * ROUNDS) > ROUNDS // 2
