"""The models the fleet serves, and how each served name's prompts are prepared."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp

from router.api.parity import matching
from router.config.model import Model
from router.engines import EngineInfo
from router.fleet.discovery.backoff import Backoff
from router.heap import give_back
from router.prompt.hub import HubError, ModelFilesError
from router.prompt.model import ChatModel, load_model
from router.prompt.pipelines import CLASSES
from router.prompt.stage import ModelSpec
from router.prompt.tokenizer import SegmentCache

log = logging.getLogger(__name__)

SMALLEST_BLOCK = 16
NO_FILES = "no-model-files"
NOT_CONFIGURED = "no tokenizer files are configured (models[].files or --model-files)"
LOAD_WAIT_S = 10.0


class Catalog:
    """Served name, alias or adapter -> ModelSpec (`specs`), kept in step with the replicas that join.

    `default_files`: files for a model that the configuration doesn't name (the --model-files flag).
    """

    def __init__(
        self, configured: Sequence[Model], default_files: str | None, segment_cache_bytes: int, render_cache_bytes: int
    ) -> None:
        self.specs: dict[str, ModelSpec] = {}
        self.approximate: dict[str, str] = {}
        """Model name -> why its prompts are matched by approximate keys."""
        self._configured: Mapping[str, Model] = {model.name: model for model in configured}
        self._default_files = default_files
        self._segment_bytes, self._render_bytes = segment_cache_bytes, render_cache_bytes
        self._loading: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._loaded: dict[str, ChatModel] = {}
        self._readings: dict[tuple[str, str], ChatModel] = {}  # (model, engine kind) -> its engines' reading
        self._hopeless: set[tuple[str, str, str]] = set()  # (model, kind, version) that no reading matches
        self._rereading = asyncio.Lock()
        self._sizes: dict[str, int] = {}
        self._served: dict[str, tuple[str, EngineInfo]] = {}
        self._aliases: dict[str, Model] = {}

    async def close(self) -> None:
        """Give up on files that couldn't be fetched yet."""
        tasks = [task for task, _ in self._loading.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def learn(self, info: EngineInfo) -> tuple[str, int, bool]:
        """A replica serves what `info` says: (canonical name, canonical block size, whether that size changed).

        The canonical block size is the configured one, or the smallest among the model's replicas, at least 16. Files
        that take longer than LOAD_WAIT_S are waited for by nobody: approximate keys until they are there.
        """
        name = info.models[0]
        if name not in self._loading:
            # The configuration may know the model by any of its names.
            alias = next((alias for alias in info.models if alias in self._configured), None)
            if alias is not None:
                self._aliases[name] = self._configured[alias]
            self.approximate[name] = "its tokenizer files are still being loaded"
            known = asyncio.Event()
            self._loading[name] = asyncio.create_task(self._load(name, known), name=f"load {name}"), known
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOAD_WAIT_S):
                await self._loading[name][1].wait()
        settings = self._settings(name)
        size = settings.block_size or min(self._sizes.get(name, 1 << 30), max(SMALLEST_BLOCK, info.block_size or 0))
        changed = self._sizes.get(name, size) != size
        self._sizes[name] = size
        self._served |= dict.fromkeys((*info.models, *info.adapters), (name, info))
        self._specify(name)
        return name, size, changed

    async def preview(self, configured: Sequence[Model]) -> dict[str, tuple[Model, ChatModel | None]]:
        """The served models whose settings `configured` changes, each with its files loaded anew (None: has none).

        Nothing changes before `adopt`. Raises ModelFilesError for files that can't be loaded.
        """
        by_name = {model.name: model for model in configured}
        found: dict[str, tuple[Model, ChatModel | None]] = {}
        for name in self._loading:
            names = [served for served, (base, _) in self._served.items() if base == name]
            alias = next((each for each in (name, *names) if each in by_name), None)
            settings = by_name[alias] if alias is not None else Model(name=name, files=self._default_files)
            if settings != self._settings(name):
                model = None
                if settings.files is not None:
                    try:
                        model = await asyncio.to_thread(self._read, settings, settings.tokenizer_class)
                    except ModelFilesError as error:
                        raise ModelFilesError(f"models: {settings.name}: {error}") from None
                found[name] = settings, model
        return found

    def adopt(self, configured: Sequence[Model], changed: Mapping[str, tuple[Model, ChatModel | None]]) -> None:
        """Take what `preview` found; replicas of the changed models have to be learned again."""
        self._configured = {model.name: model for model in configured}
        for name, (settings, model) in changed.items():
            self._loading[name][0].cancel()
            self._loading[name][1].set()
            self._aliases[name] = settings
            self._readings = {key: reading for key, reading in self._readings.items() if key[0] != name}
            self._hopeless = {key for key in self._hopeless if key[0] != name}
            self._loaded.pop(name, None)
            self.approximate.pop(name, None)
            if model is not None:
                self._loaded[name] = model
            else:
                self.approximate[name] = NOT_CONFIGURED
            self._specify(name)

    async def reread(self, session: aiohttp.ClientSession, url: str, info: EngineInfo) -> bool:
        """A replica's ids differ from ours: look for the reading of the tokenizer file (prompt.pipelines) that is its.

        True if one was found; it is used from now on for engines of that kind. Not looked for where the configuration
        says which it is, and only once for a version of an engine. One at a time: another reading takes as much memory
        as the first one, and every replica of a model may ask at once.
        """
        name, model = info.models[0], self._loaded.get(info.models[0])
        settings, asked = self._settings(info.models[0]), (info.models[0], info.kind, info.version)
        if model is None or settings.tokenizer_class is not None or asked in self._hopeless:
            return False
        if (name, info.kind) in self._readings:
            return False  # one kind, one reading: the others of that kind agreed with it
        async with self._rereading:
            if (
                asked in self._hopeless or (name, info.kind) in self._readings
            ):  # found out for another replica meanwhile
                return asked not in self._hopeless
            for reading in CLASSES:
                found = await self._reading(session, url, info, reading)
                if found is not None:
                    log.info("model %s: %s engines read its tokenizer as %s", name, info.kind, reading)
                    self._readings[name, info.kind] = found
                    self._specify(name)
                    return True
            self._hopeless.add(asked)
            await asyncio.to_thread(give_back)
            return False

    async def _reading(
        self, session: aiohttp.ClientSession, url: str, info: EngineInfo, reading: str
    ) -> ChatModel | None:
        """The model read that way, if that is how the replica reads it."""
        name = info.models[0]
        settings = self._settings(name)
        try:  # slow to encode, but half as large and loaded in a third of the time: enough for a few conversations
            model = await asyncio.to_thread(self._read, settings, reading, fast=False)
            if not await matching(session, url, info.kind, name, self.specs[name], {reading: model}):
                return None
            return await asyncio.to_thread(self._read, settings, reading)
        except ModelFilesError:
            return None

    def _settings(self, name: str) -> Model:
        return self._aliases.get(name) or Model(name=name, files=self._default_files)

    def _specify(self, name: str) -> None:
        """Write the specs of everything that is served from this model."""
        settings = self._settings(name)
        for served, (base, told) in self._served.items():
            if base != name:
                continue
            spec = ModelSpec(
                name=_adapter(served, told) if served in told.adapters else name,
                adapter=served in told.adapters,
                model=self._loaded.get(name),
                block_size=self._sizes[name],
                default_template_kwargs=settings.chat_template_kwargs,
                content_format=settings.content_format,
                exclude_tools_when_none=settings.exclude_tools_when_none,
                max_model_len=told.max_model_len,
                inexact=NO_FILES if name in self.approximate else None,
            )
            readings = {kind: model for (base, kind), model in self._readings.items() if base == name}
            by_engine = {kind: replace(spec, model=model) for kind, model in readings.items()}
            self.specs[served] = replace(spec, by_engine=by_engine)

    async def _load(self, name: str, known: asyncio.Event) -> None:
        """Load the files; as long as the hub can't be reached, again. `known` is set when the first try is over."""
        pauses = Backoff(2.0, 120.0)
        told = ""
        while True:
            passing = False
            try:
                settings = self._settings(name)
                if settings.files is None:
                    raise ModelFilesError(NOT_CONFIGURED)
                self._loaded[name] = await asyncio.to_thread(self._read, settings, settings.tokenizer_class)
                del self.approximate[name]
                if told:
                    log.info("model %s: its tokenizer files are here: its prompts are exact now", name)
            except ModelFilesError as error:
                self.approximate[name] = str(error)
                passing = isinstance(error, HubError) and error.passing
                if told != str(error):
                    log.warning("model %s: prompts are matched by approximate keys: %s", name, error)
                told = str(error)
            self._specify(name)
            known.set()
            if not passing:
                return
            await asyncio.sleep(pauses.pause())

    def _read(self, settings: Model, tokenizer_class: str | None, *, fast: bool = True) -> ChatModel:
        assert settings.files is not None
        return load_model(
            settings.files,
            revision=settings.revision,
            token=_token(settings),
            tokenizer_class=tokenizer_class,
            chat_template=_template(settings),
            cache=SegmentCache(self._segment_bytes),
            fast=fast,
            max_snapshot_bytes=self._render_bytes,
        )


def _adapter(served: str, info: EngineInfo) -> str:
    """The adapter's name in KV events."""
    return served.removeprefix(f"{info.models[0]}:") if info.kind == "sglang" else served


def _token(settings: Model) -> str | None:
    if settings.token_env is None:
        return None
    token = os.environ.get(settings.token_env)
    if not token:
        raise ModelFilesError(f"models[].token_env names {settings.token_env}, which is not set in the environment")
    return token


def _template(settings: Model) -> str | None:
    if settings.chat_template is None:
        return None
    try:
        return Path(settings.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFilesError(f"models[].chat_template: {settings.chat_template} can't be read ({error})") from error
