"""Read, override and check the configuration; every error names the place, the key and the fix."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml

from router.config.model import Config

ENV_PREFIX = "PREFIX_ROUTER_"

KeyPath = tuple[str | int, ...]


class ConfigError(ValueError):
    """The configuration can't be used; the message is for the operator."""


def load_config(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
) -> Config:
    """The configuration from a YAML file, then environment variables, then flags (later wins).

    `env`: PREFIX_ROUTER_ROUTING__POLICY=session sets routing.policy (two underscores between levels; the value is
    read as YAML). `overrides`: (dotted key, value) pairs from flags. Raises ConfigError.
    """
    data: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    if path is not None:
        data = _read_yaml(path, origins)
    for name, text in sorted((env or {}).items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            keys = tuple(part.lower() for part in name[len(ENV_PREFIX) :].split("__"))
            _put(data, keys, _scalar(text, f"environment variable {name}"), f"environment variable {name}", origins)
    for dotted, value in overrides:
        _put(data, tuple(dotted.split(".")), value, f"flag for {dotted}", origins)
    _refuse_unknown(data, Config, (), origins, path)
    try:
        config = msgspec.convert(data, Config, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(error, origins, path) from None
    _cross_check(config, origins, path)
    return config


def _read_yaml(path: Path, origins: dict[KeyPath, str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}. Give a readable file with --config.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or root is None:
        raise ConfigError(f"{path}:1: the file must be a mapping of sections such as `replicas:`.")
    _remember_lines(root, (), origins, path)
    return data


def _remember_lines(node: yaml.Node, at: KeyPath, origins: dict[KeyPath, str], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*at, str(key.value))
            place = f"{path}:{key.start_mark.line + 1}"
            if below in origins:
                raise ConfigError(f"{place}: {_dotted(below)}: given twice (first at {origins[below]}). Remove one.")
            origins[below] = place
            _remember_lines(value, below, origins, path)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            origins[(*at, number)] = f"{path}:{value.start_mark.line + 1}"
            _remember_lines(value, (*at, number), origins, path)


def _scalar(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{source}: not a valid YAML value: {text!r}.") from None


def _put(data: dict[str, Any], keys: KeyPath, value: Any, source: str, origins: dict[KeyPath, str]) -> None:
    here: Any = data
    for depth, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            raise ConfigError(f"{source}: {_dotted(keys[:depth])} is a list; set it whole, as a YAML list.")
        if not isinstance(here.get(key), dict):
            if isinstance(here.get(key), list):
                raise ConfigError(f"{source}: {_dotted(keys[: depth + 1])} is a list; set it whole, as a YAML list.")
            here[key] = {}
        here = here[key]
    here[keys[-1]] = value
    origins[keys] = source


def _refuse_unknown(data: Any, kind: Any, at: KeyPath, origins: dict[KeyPath, str], path: Path | None) -> None:
    struct, is_list = _section_type(kind)
    if struct is None:
        return
    if is_list:
        if isinstance(data, list):
            for number, item in enumerate(data):
                _refuse_unknown(item, struct, (*at, number), origins, path)
        return
    if not isinstance(data, dict):
        return
    known = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in data.items():
        below = (*at, str(key))
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            fix = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(sorted(known))}."
            raise ConfigError(f"{_place(below, origins, path)}: {_dotted(below)}: unknown key; {fix}")
        _refuse_unknown(value, known[key], below, origins, path)


def _section_type(kind: Any) -> tuple[type[msgspec.Struct] | None, bool]:
    """The Struct inside an annotation, and whether it is a list of them."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, False
    is_list = get_origin(kind) is list
    for argument in get_args(kind):
        struct, inner_list = _section_type(argument)
        if struct is not None:
            return struct, is_list or inner_list
    return None, False


def _explain(error: msgspec.ValidationError, origins: dict[KeyPath, str], path: Path | None) -> ConfigError:
    message, _, where = str(error).partition(" - at `")
    keys: KeyPath = tuple(
        int(number) if number else name for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", where.rstrip("`"))
    )
    missing = re.search(r"missing required field `(\w+)`", message)
    if missing:
        return ConfigError(f"{_place(keys, origins, path)}: {_dotted((*keys, missing[1]))}: required, add it.")
    hint = _hint(keys)
    return ConfigError(f"{_place(keys, origins, path)}: {_dotted(keys)}: {message[:1].lower()}{message[1:]}.{hint}")


def _hint(keys: KeyPath) -> str:
    """What the setting at `keys` takes: its choices and its description."""
    kind: Any = Config
    for key in keys:
        struct, _ = _section_type(kind)
        if isinstance(key, str) and struct is not None:
            kind = typing.get_type_hints(struct, include_extras=True).get(key)
    choices = [value for part in _parts(kind) if get_origin(part) is Literal for value in get_args(part)]
    meanings = [part.description for part in _parts(kind) if isinstance(part, msgspec.Meta) and part.description]
    return (f" One of: {', '.join(choices)}." if choices else "") + (f" ({meanings[0]})" if meanings else "")


def _parts(kind: Any) -> Iterator[Any]:
    yield kind
    yield from getattr(kind, "__metadata__", ())
    for argument in get_args(kind):
        yield from _parts(argument)


def _cross_check(config: Config, origins: dict[KeyPath, str], path: Path | None) -> None:
    for section, names in (
        ("replicas", [replica_id(r.id, r.url) for r in config.replicas]),
        ("models", [model.name for model in config.models]),
    ):
        for number, name in enumerate(names):
            if name in names[:number]:
                at: KeyPath = (section, number)
                raise ConfigError(
                    f"{_place(at, origins, path)}: {_dotted(at)}: `{name}` is given twice; give each its own "
                    f"{'id' if section == 'replicas' else 'name'}."
                )

    for number, replica in enumerate(config.replicas):
        if config.workers > 1 and replica.events is not None and replica.events.bind:
            at = ("replicas", number, "events", "bind")
            raise ConfigError(
                f"{_place(at, origins, path)}: {_dotted(at)}: takes connections in one process; set `workers: 1`, or "
                "have the engine publish at an address of its own."
            )

    for number, source in enumerate(config.discovery.kubernetes):
        if source.service is None and source.selector is None:
            at = ("discovery", "kubernetes", number)
            raise ConfigError(f"{_place(at, origins, path)}: {_dotted(at)}: give `service` or `selector`.")


def replica_id(configured: str | None, url: str) -> str:
    """A replica's name: the configured id, or host:port of its URL."""
    return configured or url.split("://", 1)[1].rstrip("/")


def _place(keys: KeyPath, origins: dict[KeyPath, str], path: Path | None) -> str:
    for length in range(len(keys), 0, -1):
        if keys[:length] in origins:
            return origins[keys[:length]]
    return str(path) if path else "configuration"


def _dotted(keys: KeyPath) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text or "the file"
