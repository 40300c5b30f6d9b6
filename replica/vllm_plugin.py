"""vLLM's plugin: the KV event publisher `prefix_router`, which publishes to Redis from inside the engine process.

Entry point `prefix_router` of the group `vllm.general_plugins`: vLLM calls `register` in each of its processes, and it
does nothing but make the name known. The publisher itself (vllm_publisher.py) is loaded where a configuration asks for
it.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any, Literal, get_args

log = logging.getLogger(__name__)

NAME = "prefix_router"


def register() -> None:
    """Make the publisher known. Never raises: vLLM would not start, and most installations don't ask for it."""
    try:
        from vllm.config import KVEventsConfig
        from vllm.distributed.kv_events import EventPublisherFactory

        try:
            EventPublisherFactory.register_publisher(NAME, _publisher)
        except KeyError:
            return  # already there: plugins may be loaded more than once
        _allow(KVEventsConfig)
    except Exception as error:
        log.warning("the KV event publisher %s is not available with this vLLM: %r", NAME, error)


def _publisher(**settings: Any) -> Any:
    from replica.vllm_publisher import PrefixRouterPublisher

    return PrefixRouterPublisher(**settings)


def _allow(config: Any) -> None:
    """Let the configuration name the publisher: up to 0.33 its field takes two literals, whatever is registered."""
    try:
        config(publisher=NAME)
    except ValueError:
        from pydantic.dataclasses import rebuild_dataclass

        field = next(field for field in fields(config) if field.name == "publisher")
        field.type = Literal[(*get_args(field.type), NAME)]
        rebuild_dataclass(config, force=True)
