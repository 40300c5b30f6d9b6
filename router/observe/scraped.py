"""The metrics that are read when scraped, not kept up to date on the request path: what each one means."""

from __future__ import annotations

from typing import Literal, NamedTuple

Sample = tuple[str, tuple[str, ...], float]
"""(a name in SCRAPED, the values of its labels, value)."""


class Scraped(NamedTuple):
    """A metric without the prefix `prefix_router_`; a counter's `_total` is added."""

    name: str
    kind: Literal["gauge", "counter"]
    text: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Scraped:
    return Scraped(name, "gauge", text, labels)


def _counter(name: str, text: str, *labels: str) -> Scraped:
    return Scraped(name, "counter", text, labels)


SCRAPED = {
    each.name: each
    for each in (
        _gauge("replica_up", "1 if requests are sent there.", "replica"),
        _gauge("replica_ejected", "1 if it is ejected because its requests failed.", "replica"),
        _gauge("replica_weight", "Share of a full load it may take: below 1 while it starts slowly.", "replica"),
        _gauge("replica_limit", "Sequences it may have at once, where that is known.", "replica"),
        _gauge(
            "replica_warm_tokens",
            "Tokens that sessions living there are expected to come back for: scale in where they are fewest.",
            "replica",
        ),
        _gauge("replica_slowness", "How much slower than the fleet it answers, learnt: 1 is the average.", "replica"),
        _gauge("replica_running", "Sequences sent and not ended.", "replica"),
        _gauge(
            "replica_pending_prefill_tokens",
            "Uncached prompt tokens sent whose first answer byte has not come; of long prompts each counts for more.",
            "replica",
        ),
        _gauge("replica_kv_usage", "Share of the KV cache in use, as the engine reports it.", "replica"),
        _gauge("replica_waiting", "Requests the engine has queued.", "replica"),
        _gauge(
            "replica_exact", "1 if the index follows this replica's KV events, 0 if its cache is modelled.", "replica"
        ),
        _gauge(
            "replica_quarantined", "1 if its token ids differ from the router's: its events are not used.", "replica"
        ),
        _gauge(
            "replica_verified",
            "1 if the engine's own token ids for the probes were compared and are the router's.",
            "replica",
        ),
        _gauge("replica_index_blocks", "Blocks the index has for it.", "replica"),
        _gauge(
            "prediction_drift",
            "Share of tokens by which predicted and actual cached tokens differ, recent answers.",
            "replica",
        ),
        _gauge(
            "event_drift",
            "Share of blocks that KV events should have announced after an answer and did not, recent answers.",
            "replica",
        ),
        _counter("event_gaps", "Times event batches were missed.", "replica"),
        _counter("event_replays", "Replays asked for.", "replica"),
        _counter("event_clears", "Times everything known of its cache was dropped.", "replica"),
        _counter("event_malformed", "Event batches or events that could not be read.", "replica"),
        _counter("event_orphans", "Blocks whose predecessor is unknown, left out.", "replica"),
        _gauge("event_lag_seconds", "From the engine's time stamp to the index, for the last batch.", "replica"),
        _gauge("redis_up", "1 if the last poll of Redis succeeded; with Redis only."),
        _gauge("redis_routers", "Other routers sharing the index; with Redis only."),
        _gauge("redis_stuck_replicas", "Replicas whose agents reach Redis but can't write to it: is it full?"),
        _counter("mirror_bootstraps", "Times the mirror was read anew; with Redis only."),
        _counter("mirror_gaps", "Times the delta stream had a hole; with Redis only."),
        _gauge("index_blocks", "Distinct blocks in the index."),
        _counter("index_blocks_refused", "Blocks left out because the index is full (index.max_blocks)."),
        _gauge("sessions", "Sessions remembered for reports and prefix breaks."),
        _gauge("session_bytes", "Memory that they take, about (observe.sessions_mb bounds it)."),
        _counter("sessions_forgotten", "Sessions forgotten because that memory was full."),
        _counter("warmup_tokens", "Prompt tokens sent to warm replicas that joined."),
        _gauge("client_connections", "Open client connections."),
        _gauge("request_bytes_held", "Bytes of request bodies in memory."),
        _gauge("upstream_connections", "Open connections to replicas."),
        _gauge("queue_requests", "Requests that wait for room."),
        _counter("queue_turns", "Requests that waited and got their turn."),
        _counter(
            "queue_refusals",
            "Requests that got no turn: the tenant's share full, the queue full, the deadline passed.",
            "reason",
        ),
        _counter("ejections", "Times a replica was ejected."),
        _gauge("retry_budget_spent", "1 while failed retries have used up the retry budget."),
        _counter("key_requests", "Requests admitted, by API key.", "key"),
        _counter("key_tokens", "Prompt and completion tokens, by API key.", "key"),
        _gauge("key_running", "Requests under way, by API key.", "key"),
        _counter("key_refused", "Requests refused, by API key and the limit that did it.", "key", "limit"),
        _counter("unauthenticated", "Requests without a valid API key; with keys only."),
        _counter("config_reloads", "Times the configuration was read again: taken, or refused.", "result"),
        _gauge("config_refused", "1 while the configuration's files are refused: an older one is in force."),
        _gauge("worker_up", "1 while the worker serves; with several workers only.", "worker"),
        _counter("worker_restarts", "Times a worker ended and was started again; with several workers only."),
        _gauge("models_approximate", "Models without exact tokens."),
    )
}
