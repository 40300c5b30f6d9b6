"""Models for the prompt tests: the tiny recorded one, and real tokenizers where they were downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from router.prompt.model import ChatModel, load_model

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "replica" / "simulator" / "model"
TEMPLATE = (Path(__file__).parent / "templates" / "chatml.jinja").read_text()
REAL = ("qwen3", "llama3_1", "deepseek_v3", "gptoss", "llama2")


@pytest.fixture(scope="session")
def tiny() -> ChatModel:
    """The recorded engines' model: the simulator's tokenizer, which is the same file, with their plain template."""
    return load_model(MODEL, chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def tiny_vllm() -> ChatModel:
    """The same as the recorded vLLM loaded it (see router.prompt.pipelines)."""
    return load_model(MODEL, chat_template=TEMPLATE, tokenizer_class="Qwen2Tokenizer")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """The tiny model's, as its file has it."""
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def _directory(name: str) -> Path:
    directory = ROOT / ".cache" / "tokenizers" / name
    if not (directory / "tokenizer.json").is_file():
        pytest.skip(f"{name}: not downloaded; run: python tests/prompt/fetch_tokenizers.py")
    return directory


@pytest.fixture(scope="session", params=REAL)
def real_directory(request: pytest.FixtureRequest) -> Path:
    return _directory(request.param)


@pytest.fixture(scope="session", params=[name for name in REAL if name not in ("gptoss", "llama2")])
def templated_directory(request: pytest.FixtureRequest) -> Path:
    """A real model whose files have a chat template."""
    return _directory(request.param)
