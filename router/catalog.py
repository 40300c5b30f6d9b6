"""The models the fleet serves, and how each served name's prompts are prepared."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from router.config.model import Model
from router.engines import EngineInfo
from router.prompt.model import ChatModel, ModelFilesError, load_model
from router.prompt.stage import ModelSpec
from router.prompt.tokenizer import SegmentCache

log = logging.getLogger(__name__)

SMALLEST_BLOCK = 16
NO_FILES = "no-model-files"


class Catalog:
    """Served name, alias or adapter -> ModelSpec (`specs`), kept in step with the replicas that join.

    `default_files`: files for a model that the configuration doesn't name (the --model-files flag).
    """

    def __init__(self, configured: Sequence[Model], default_files: str | None, segment_cache_bytes: int) -> None:
        self.specs: dict[str, ModelSpec] = {}
        self.approximate: dict[str, str] = {}
        """Model name -> why its prompts are matched by approximate keys."""
        self._configured: Mapping[str, Model] = {model.name: model for model in configured}
        self._default_files = default_files
        self._cache_bytes = segment_cache_bytes
        self._loaded: dict[str, ChatModel | None] = {}
        self._sizes: dict[str, int] = {}
        self._served: dict[str, tuple[str, EngineInfo]] = {}
        self._lock = asyncio.Lock()

    async def learn(self, info: EngineInfo) -> tuple[str, int, bool]:
        """A replica serves what `info` says: (canonical name, canonical block size, whether that size changed).

        The canonical block size is the configured one, or the smallest among the model's replicas, at least 16.
        """
        name = info.models[0]
        async with self._lock:
            if name not in self._loaded:
                self._loaded[name] = await self._load(name)
        settings = self._configured.get(name, Model(name=name))
        size = settings.block_size or min(self._sizes.get(name, 1 << 30), max(SMALLEST_BLOCK, info.block_size or 0))
        changed = self._sizes.get(name, size) != size
        self._sizes[name] = size
        self._served |= dict.fromkeys((*info.models, *info.adapters), (name, info))
        for served, (base, told) in self._served.items():
            if base == name:
                self.specs[served] = ModelSpec(
                    name=served if served in told.adapters else name,
                    model=self._loaded[name],
                    block_size=size,
                    default_template_kwargs=settings.chat_template_kwargs,
                    max_model_len=told.max_model_len,
                    inexact=NO_FILES if name in self.approximate else None,
                )
        return name, size, changed

    async def _load(self, name: str) -> ChatModel | None:
        settings = self._configured.get(name)
        files = settings.files if settings is not None else self._default_files
        if files is None:
            self.approximate[name] = "no tokenizer files are configured (models[].files or --model-files)"
        else:
            try:
                return await asyncio.to_thread(
                    load_model,
                    files,
                    revision=settings.revision if settings is not None else None,
                    tokenizer_class=settings.tokenizer_class if settings is not None else None,
                    cache=SegmentCache(self._cache_bytes),
                )
            except ModelFilesError as error:
                self.approximate[name] = str(error)
        log.warning("model %s: prompts are matched by approximate keys: %s", name, self.approximate[name])
        return None
