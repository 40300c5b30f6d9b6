"""A model's tokenizer and chat template, from a directory or a hub.

Files read: tokenizer.json (needed), tokenizer_config.json, chat_template.jinja, additional_chat_templates/*.jinja,
chat_template.json, config.json (the model's type); params.json's being there. No weights, no code of the model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from router.heap import give_back
from router.prompt.content_format import ContentFormat, detect_content_format, detect_sglang_format
from router.prompt.fast import build, recipe_of
from router.prompt.hub import ModelFilesError, fetch
from router.prompt.pipelines import apply_class
from router.prompt.template import ChatTemplate, Messages, TemplateError, Tools
from router.prompt.tokenizer import HuggingFace, SegmentCache, SegmentTokenizer, cutting_of

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Model types whose chats engines encode with code of their own instead of the template (engine-protocol.md F.1, F.2).
_OWN_ENCODERS = {"gpt_oss": "harmony", "deepseek_v32": "deepseek-encoding", "deepseek_v4": "deepseek-encoding"}
_OWN_ENCODERS |= {"kimi_k3": "kimi-encoding", "kimi_audio": "kimi-encoding"}

REMOTE_CODE = "remote-code-tokenizer"
# Beside Mistral's own weights (consolidated*.safetensors); vLLM then takes mistral_common instead of the template.
_MISTRAL_FILES = ("params.json", "tekken.json", "tokenizer.model.v*")


class ChatModel:
    """Renders and encodes as the engines do (engine-protocol.md F). Thread-safe."""

    def __init__(
        self,
        tokenizer: SegmentTokenizer,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        own_encoder: str | None = None,
        ids: int | None = None,
        max_chars: int = 1 << 24,
        max_seconds: float = 2.0,
        max_snapshot_bytes: int = 32 << 20,
    ) -> None:
        """`templates`: name -> source; "default" and "tool_use" are chosen by the request's tools. May be empty.

        `own_encoder`: set for a model whose chats engines encode without a template; a slug that says how.
        `ids`: every token id the model takes is below it; None if unknown.
        """
        self.own_encoder = own_encoder
        self.ids = ids
        self.tokenizer = tokenizer
        self.special_tokens = dict(special_tokens)
        self._limits: dict[str, Any] = {
            "max_chars": max_chars,
            "max_seconds": max_seconds,
            "max_snapshot_bytes": max_snapshot_bytes,
        }
        self._lock = threading.Lock()
        self._aside = threading.Lock()
        self._templates = {name: self._compile(name, source) for name, source in templates.items()}
        self._templates_aside: dict[str, ChatTemplate] = {}
        self._formats: dict[tuple[str, str], ContentFormat] = {}
        for name, one in self._templates.items():
            self._formats["vllm", name] = detect_content_format(one.tree)
            self._formats["sglang", name] = detect_sglang_format(one.source, one.tree)

    def _compile(self, name: str, source: str) -> ChatTemplate:
        try:
            return ChatTemplate(source, self.special_tokens, name=name, **self._limits)
        except TemplateError as error:
            raise ModelFilesError(f"{error}. Fix the template file or set another chat template") from error

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self.tokenizer.vocab_size

    @property
    def template_source(self) -> str | None:
        """The template used for a conversation without tools; None if the model has none."""
        return self._templates[self._name(None)].source if self._templates else None

    def _name(self, tools: Tools | None) -> str:
        if tools and "tool_use" in self._templates:
            return "tool_use"
        if "default" in self._templates:
            return "default"
        if len(self._templates) == 1:
            return next(iter(self._templates))
        raise TemplateError("the model has no default chat template")

    def template(self, tools: Tools | None = None) -> ChatTemplate:
        """The template for a conversation with these tools. Raises TemplateError if the model has none."""
        return self._templates[self._name(tools)]

    def content_format(self, tools: Tools | None = None, engine: str = "vllm") -> ContentFormat:
        """What the engine ("vllm" or "sglang") takes to be the template's wanted form of content."""
        return self._formats[engine, self._name(tools)]

    def render(
        self,
        messages: Messages,
        tools: Tools | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        aside: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt's text for messages already in the template's form. Raises TemplateError.

        `aside`: nobody who renders without it waits for this render (for long ones, in a thread).
        """
        name = self._name(tools)
        with self._aside if aside else self._lock:
            template = self._templates[name]
            if aside:
                if name not in self._templates_aside:
                    self._templates_aside[name] = self._compile(name, template.source)
                template = self._templates_aside[name]
            return template.render(
                messages,
                tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **kwargs,
            )

    def encode(self, text: str, add_special_tokens: bool = False) -> bytes:
        """The text's ids, packed little-endian u32."""
        return self.tokenizer.encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        return self.tokenizer.decode(ids)


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    chat_template: str | None = None,
    tokenizer_class: str | None = None,
    cache: SegmentCache | None = None,
    fast: bool = True,
    max_chars: int = 1 << 24,
    max_seconds: float = 2.0,
    max_snapshot_bytes: int = 32 << 20,
) -> ChatModel:
    """Loads from a local directory, or else from the hub by id (blocking: run it off the event loop).

    `chat_template`: source text that replaces the model's own templates, as an engine's `--chat-template` does.
    `tokenizer_class`: the transformers class whose pipeline an engine puts in the file's place (see `pipelines`).
    `cache`: the segment cache; models with the same tokenizer may share one, different ones must not.
    `fast`: encode with tiktoken if it is installed and gives the same ids for this tokenizer (see `fast`).
    Raises ModelFilesError.
    """
    directory = Path(source)
    if not directory.is_dir():
        directory = fetch(str(source), revision=revision, token=token, cache_dir=cache_dir)
    config = _read_json(directory / "tokenizer_config.json")
    model_config = _read_json(directory / "config.json")
    templates = {"default": chat_template} if chat_template is not None else _templates(directory, config)
    segments, ids = _segments(directory, config, model_config, tokenizer_class, cache, fast)
    give_back()
    return ChatModel(
        segments,
        templates,
        _special_tokens(config),
        own_encoder=_own_encoder(directory, config, model_config),
        ids=ids,
        max_chars=max_chars,
        max_seconds=max_seconds,
        max_snapshot_bytes=max_snapshot_bytes,
    )


def _segments(
    directory: Path,
    config: dict[str, Any],
    model_config: dict[str, Any],
    tokenizer_class: str | None,
    cache: SegmentCache | None,
    fast: bool,
) -> tuple[SegmentTokenizer, int]:
    """The tokenizer, and the number of ids."""
    tokenizer = _load_tokenizer(directory, config, tokenizer_class)
    cutting, ids = cutting_of(tokenizer), _ids(tokenizer, model_config)
    recipe = recipe_of(tokenizer) if fast and cutting.ends is not None else None
    if recipe is not None:
        del tokenizer  # before the encoder is built, which then takes its memory: 35 MB less for 150,000 tokens
        encoder = build(recipe)
        if encoder is not None:
            return SegmentTokenizer(cutting, encoder, cache), ids
        tokenizer = _load_tokenizer(directory, config, tokenizer_class)
    return SegmentTokenizer(cutting, HuggingFace(tokenizer), cache), ids


def _own_encoder(directory: Path, config: dict[str, Any], model_config: dict[str, Any]) -> str | None:
    mapped = config.get("auto_map")
    if isinstance(mapped, dict) and mapped.get("AutoTokenizer"):
        return REMOTE_CODE
    if any(next(directory.glob(name), None) for name in _MISTRAL_FILES):
        return "mistral"
    return _OWN_ENCODERS.get(str(model_config.get("model_type")))


def _ids(tokenizer: Tokenizer, config: dict[str, Any]) -> int:
    """The embedding may have more rows than the tokenizer has tokens; vLLM takes ids up to the larger of both."""
    text = config.get("text_config")
    sizes = [config.get("vocab_size"), text.get("vocab_size") if isinstance(text, dict) else None]
    known = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return max([known, *(size for size in sizes if isinstance(size, int))])


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{path}: can't be read as JSON ({error}). Fetch it again") from error
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path}: must hold a JSON object. Fetch it again")
    return value


def _load_tokenizer(directory: Path, config: dict[str, Any], tokenizer_class: str | None) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelFilesError(
            f"{path}: missing. Only tokenizers with a tokenizer.json are supported; copy it from the model's "
            "repository, or leave the model's files out to route by approximate keys"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise ModelFilesError(f"{path}: not a tokenizer ({error}). Fetch it again") from error
    try:
        _add_missing(tokenizer, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFilesError(f"{directory / 'tokenizer_config.json'}: wrong added tokens ({error!r})") from error
    if config.get("split_special_tokens"):
        tokenizer.encode_special_tokens = True
    if tokenizer_class is not None:
        try:
            apply_class(tokenizer, tokenizer_class)
        except ValueError as error:
            raise ModelFilesError(f"{directory}: {error}") from error
    return tokenizer


def _add_missing(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """transformers adds tokens that only tokenizer_config.json knows; ids follow the order of their listing."""
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
            token = AddedToken(
                entry["content"],
                single_word=bool(entry.get("single_word")),
                lstrip=bool(entry.get("lstrip")),
                rstrip=bool(entry.get("rstrip")),
                normalized=bool(entry.get("normalized", not entry.get("special"))),
                special=bool(entry.get("special")),
            )
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = list(_special_tokens(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(key)
        named += [text for item in (extra if isinstance(extra, list) else []) if (text := _text_of(item))]
    missing = [text for text in dict.fromkeys(named) if text not in known]
    if missing:
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])


def _text_of(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    named = {name: config.get(name) for name in _SPECIAL_NAMES}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    return {name: text for name, token in named.items() if (text := _text_of(token)) is not None}


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Name -> source, files before tokenizer_config.json (engine-protocol.md F.3, template location)."""
    found: dict[str, str] = {}
    in_config = config.get("chat_template")
    if in_config is None:
        in_config = _read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(in_config, str):
        found["default"] = in_config
    elif isinstance(in_config, list):
        try:
            found |= {str(entry["name"]): str(entry["template"]) for entry in in_config}
        except (KeyError, TypeError) as error:
            raise ModelFilesError(
                f"{directory / 'tokenizer_config.json'}: chat_template must be a string or a list of name and template"
            ) from error
    alone = directory / "chat_template.jinja"
    if alone.is_file():
        found = {"default": alone.read_text(encoding="utf-8")}
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return found
