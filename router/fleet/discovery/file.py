"""Endpoints listed in a YAML or JSON file that is read again whenever it changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from router.engines import EventSource
from router.fleet.discovery.endpoint import Endpoint, Update

log = logging.getLogger(__name__)

LARGEST_FILE = 16 << 20
Stamp = tuple[int, int, int]


class EventEntry(msgspec.Struct, forbid_unknown_fields=True):
    endpoint: Annotated[str, msgspec.Meta(pattern=r"^(tcp|ipc)://")]
    replay_endpoint: Annotated[str, msgspec.Meta(pattern=r"^(tcp|ipc)://")] | None = None
    topic: str = ""
    bind: bool = False


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A replica as files and the admin API write it."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^/]+/?$")]
    id: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    engine: Literal["auto", "vllm", "sglang", "tgi"] = "auto"
    draining: bool = False
    labels: dict[str, str] = {}
    events: EventEntry | None = None

    def endpoint(self) -> Endpoint:
        """The endpoint it describes."""
        url = self.url.rstrip("/")
        said = self.events
        return Endpoint(
            id=self.id or url.split("://", 1)[1],
            url=url,
            ready=not self.draining,
            terminating=self.draining,
            kind=None if self.engine == "auto" else self.engine,
            events=EventSource(said.endpoint, said.replay_endpoint, said.topic, said.bind) if said else None,
            labels=self.labels,
        )


def parse(text: str) -> list[Endpoint]:
    """The endpoints a file lists, sorted by id. Raises ValueError naming the entry and what is wrong with it.

    A list of mappings with the keys of the configuration's `replicas` (url, id, engine, labels, events), and
    `draining: true` for one that should finish what it has; the list may stand under a key `replicas`. Example:

        - url: http://10.0.0.7:8000
          id: gpu-7
        - url: http://10.0.0.8:8000
          draining: true
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML or JSON: {getattr(error, 'problem', error)}") from None
    if isinstance(data, dict) and set(data) == {"replicas"}:
        data = data["replicas"]
    if data is None or not isinstance(data, list):
        raise ValueError("must be a list of endpoints such as `- url: http://10.0.0.7:8000` (an empty list: `[]`)")
    found: dict[str, Endpoint] = {}
    for number, item in enumerate(data):
        try:
            endpoint = msgspec.convert(item, Entry).endpoint()
        except msgspec.ValidationError as error:
            raise ValueError(f"entry {number + 1}: {error}") from None
        if endpoint.id in found:
            raise ValueError(f"entry {number + 1}: id {endpoint.id} is given twice; give each its own `id`")
        found[endpoint.id] = endpoint
    return [found[name] for name in sorted(found)]


class FileSource:
    """Looks at the file every `interval_s` seconds; a changed one that can't be used leaves the last list in force.

    Replacing the file or the directory link above it (as ConfigMap volumes do) is seen. Write a new file and rename
    it over the old one: a half-written file can be a valid shorter list.
    """

    def __init__(self, path: Path, *, interval_s: float = 1.0) -> None:
        self.name = f"file {path}"
        self.problem = "not read yet"
        self._path = path
        self._interval = interval_s

    async def run(self, update: Update) -> None:
        """See Source.run."""
        seen: Stamp | None = None
        known: list[Endpoint] | None = None
        unusable = ""
        while True:
            problem = ""
            try:
                stamp, text = await asyncio.to_thread(_read_if_changed, self._path, seen)
                if text is not None:
                    seen, unusable = stamp, ""
                    found = parse(text)
                    if found != known:
                        known = found
                        update(found)
            except OSError as error:
                problem = f"can't be read: {error.strerror}"
            except ValueError as error:
                unusable = str(error)
            self._say(problem or unusable)
            await asyncio.sleep(self._interval)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            log.log(logging.WARNING if problem else logging.INFO, "%s: %s", self.name, problem or "read")
            self.problem = problem


def _read_if_changed(path: Path, seen: Stamp | None) -> tuple[Stamp, str | None]:
    status = path.stat()
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    if stamp == seen:
        return stamp, None
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"is larger than {LARGEST_FILE >> 20} MiB")
    return stamp, path.read_text(encoding="utf-8")
