"""Reading workload files: JSON and JSON lines, plain or gzip, with errors that say where and what to fix."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from loadtest.types import WorkloadError

KINDS = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number"}


def read_lines(path: str | Path) -> Iterator[Row]:
    """The objects of a `.jsonl` or `.jsonl.gz` file. Raises WorkloadError naming file and line."""
    data = read_bytes(path)
    found = False
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            found = True
            yield Row(f"{path}, line {number}", decode(line, f"{path}, line {number}"))
    if not found:
        raise WorkloadError(f"{path}: the file is empty; give a file with one JSON object a line")


def read_array(path: str | Path) -> list[Row]:
    """The objects of a file that is one JSON array, or JSON lines."""
    data = read_bytes(path)
    if not data.lstrip().startswith(b"["):
        return list(read_lines(path))
    items = decode(data, str(path))
    if not items:
        raise WorkloadError(f"{path}: the list is empty; give a file with at least one conversation")
    return [Row(f"{path}, item {number}", item) for number, item in enumerate(items)]


def read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError:
        raise WorkloadError(f"{path}: no such file; check --dataset-path") from None
    except (OSError, EOFError, zlib.error) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from None


def decode(data: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{where}: not JSON ({error}); expected one JSON object") from None


class Row:
    """One object of a file, which knows where it came from."""

    __slots__ = ("fields", "where")

    def __init__(self, where: str, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise WorkloadError(f"{where}: expected a JSON object, found {describe(fields)}")
        self.where = where
        self.fields: dict[str, Any] = fields

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """Field `name`, of one of the types in `kind`; `default` where it is absent or null, if one is given."""
        value = self.fields.get(name)
        if value is None:
            if default is not ...:
                return default
            raise self.error(name, f"is missing; found {', '.join(sorted(self.fields)) or 'no fields'}")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(name, f"must be {' or '.join(KINDS[k] for k in kinds)}, found {describe(value)}")
        return value

    def count(self, name: str, least: int, default: Any = ...) -> int:
        """Field `name`, a whole number of at least `least`."""
        value = self.get(name, int, default)
        if value < least:
            raise self.error(name, f"must be at least {least}, found {value}")
        return int(value)

    def error(self, name: str, problem: str) -> WorkloadError:
        return WorkloadError(f"{self.where}: field `{name}` {problem}")


def describe(value: Any) -> str:
    text = KINDS.get(type(value), "null" if value is None else type(value).__name__)
    return f"{text} ({str(value)[:40]})" if isinstance(value, (int, float, str)) else text
