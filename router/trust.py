"""Proof that the router's token ids are each replica's: when it joins, from time to time, and with every answer.

| evidence | what is compared | wrong when | right again when |
|---|---|---|---|
| ids | the probes' ids with the engine's own (api.parity) | any differs | all are equal |
| blocks | a prompt's chain with the blocks that events announced after it | 4 of 5 are missing | 9 of 10 are there |
| cached | predicted with actual `cached_tokens` | 9 of 10 tokens differ | all but `drift_alert` agree |

A replica with wrong evidence is distrusted: its events can't be matched with this router's chains, so its cache is
modelled instead, which needs no more than chains that agree with themselves. Predictions that are off by more than
`drift_alert` but not hopeless are only told (/ready, log, metric).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiohttp

from router.api.parity import check_parity
from router.catalog import Catalog
from router.fleet.feeds import Feeds
from router.fleet.replica import Feed, Replica
from router.index.types import Match
from router.observe.agreement import Agreement
from router.observe.scraped import Sample
from router.prompt.stage import Prompt, PromptStage
from router.proxy.plan import Outcome

log = logging.getLogger(__name__)

# Blocks: so many answers are checked after a join, then one in `_SPARSE`, and all while blocks are missing; each is
# looked up at these times after its end (events come with the answer; blocks may be evicted soon), and the best look
# counts.
_FIRST_ANSWERS = 20
_SPARSE = 16
_LOOKS_S = (0.1, 0.4, 1.0, 2.0)
_MAX_WAITING = 64
_BLOCKS_WRONG, _BLOCKS_RIGHT, _BLOCKS_SAMPLES = 0.8, 0.1, 8
_CACHED_WRONG, _CACHED_SAMPLES, _ALERT_SAMPLES = 0.9, 30, 20


@dataclass(slots=True)
class Record:
    """What is known of one replica. `ids`: why its ids are wrong. `reports`: it says how many tokens it had cached."""

    replica: Replica
    task: asyncio.Task[None] | None = None
    ids: str = ""
    blocks: Agreement = field(default_factory=Agreement)
    cached: Agreement = field(default_factory=Agreement)
    reports: bool = False
    wrong_blocks: bool = False
    wrong_cached: bool = False
    alerted: bool = False
    answers: int = 0

    def reason(self, alert: float) -> str:
        """Why the replica is distrusted now; empty if it is not."""
        blocks, cached = self.blocks, self.cached
        if blocks.samples >= _BLOCKS_SAMPLES:
            self.wrong_blocks = blocks.drift > (_BLOCKS_RIGHT if self.wrong_blocks else _BLOCKS_WRONG)
        if cached.samples >= _CACHED_SAMPLES:
            self.wrong_cached = cached.drift > (alert if self.wrong_cached else _CACHED_WRONG)
        if self.ids:
            return self.ids
        if self.wrong_blocks:
            return (
                f"{blocks.drift:.0%} of the blocks its KV events should announce after an answer are missing: "
                "check that models[].files, block_size and the engine's model agree"
            )
        if self.wrong_cached:
            return f"its cached_tokens differ from the predictions by {cached.drift:.0%} of the tokens"
        return ""


@dataclass(slots=True, eq=False)
class _Look:
    """One prompt's blocks, to be looked for at `due` (loop time); `best` were seen of `expected`.

    `clears`, `failures`: how often the replica's blocks had been forgotten, and the index could not be read, when it
    began.
    """

    due: float
    began: float
    step: int
    record: Record
    chain: list[int]
    expected: int
    clears: int
    failures: int
    best: int = 0


class Trust:
    """Watches replicas: probes each every `interval_s` (five tokenize requests), and learns from answers.

    `generate`: let an engine without such endpoints generate one token per probe. `drift_alert`: share, 0 to 1.
    """

    def __init__(
        self,
        prompts: PromptStage,
        catalog: Catalog,
        feeds: Feeds,
        *,
        interval_s: float,
        drift_alert: float,
        generate: bool = False,
        session: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession,
    ) -> None:
        self._prompts = prompts
        self._catalog = catalog
        self._feeds = feeds
        self.configure(interval_s, drift_alert, generate)
        self._make_session = session
        self._session: aiohttp.ClientSession | None = None
        self._records: dict[str, Record] = {}
        self._looks: deque[_Look] = deque()
        self._looker: asyncio.Task[None] | None = None

    def configure(self, interval_s: float, drift_alert: float, generate: bool) -> None:
        """See the class."""
        self._interval = interval_s
        self._alert = drift_alert
        self._generate = generate

    def watch(self, replica: Replica) -> None:
        """Check a replica that (re)joined, now and from now on; what was known of it is forgotten."""
        if self._session is None:
            self._session = self._make_session()
        self.unwatch(replica.id)
        record = self._records[replica.id] = Record(replica)
        replica.verified = False
        replica.distrust = ""
        record.task = asyncio.create_task(self._watch(record, self._session), name=f"parity {replica.id}")

    def unwatch(self, replica_id: str) -> None:
        """Stop checking a replica."""
        record = self._records.pop(replica_id, None)
        if record is not None and record.task is not None:
            record.task.cancel()

    async def close(self) -> None:
        """Stop checking."""
        tasks = [record.task for record in self._records.values() if record.task is not None]
        for replica_id in list(self._records):
            self.unwatch(replica_id)
        if self._looker is not None:
            self._looker.cancel()
            tasks.append(self._looker)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def answered(self, replica: Replica, prompt: Prompt, match: Match, outcome: Outcome) -> None:
        """A request with this prompt was answered; `match`: what the replica's events said it held before."""
        record = self._records.get(replica.id)
        if record is None or replica.feed is not Feed.EVENTS or not prompt.exact or not prompt.chain:
            return
        if not self._feeds.answers:  # what is known is old: that speaks of no token ids
            return
        usage = outcome.usage
        if usage is not None:
            # vLLM leaves the count out when it is 0 as well as when it is told not to report it.
            record.reports = record.reports or usage.cached_tokens is not None
            if record.reports and usage.prompt_tokens == prompt.tokens:
                predicted = min(match.blocks, prompt.hittable_blocks) * prompt.block_size
                record.cached.note(predicted, usage.cached_tokens or 0)
                self._judge(record)
        record.answers += 1
        if record.answers <= _FIRST_ANSWERS or record.wrong_blocks or record.answers % _SPARSE == 0:
            self._look_for(record, prompt)

    def alerts(self) -> list[str]:
        """For /ready: replicas whose predictions are off."""
        return [
            f"replica {record.replica.id}: predicted and actual cached tokens differ by {record.cached.drift:.0%}"
            for record in self._records.values()
            if record.alerted and not record.replica.distrust
        ]

    def samples(self) -> Iterator[Sample]:
        """For /metrics."""
        for record in self._records.values():
            at = (record.replica.id,)
            yield "prediction_drift", at, record.cached.drift
            yield "event_drift", at, record.blocks.drift
            yield "replica_verified", at, float(record.replica.verified)

    async def _watch(self, record: Record, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                await self._check(record, session)
            except Exception:
                log.exception("replica %s: comparing its token ids failed", record.replica.id)
            await asyncio.sleep(self._interval)

    async def _check(self, record: Record, session: aiohttp.ClientSession) -> None:
        replica, info = record.replica, record.replica.info
        if info is None:
            return
        model = info.models[0]
        result = await check_parity(session, replica.url, info.kind, model, self._prompts, generate=self._generate)
        if not result.ok and await self._catalog.reread(session, replica.url, info):
            log.info("replica %s: the tokenizer is read as its engine reads it", replica.id)
            result = await check_parity(session, replica.url, info.kind, model, self._prompts, generate=self._generate)
        if not result.checked:
            return
        replica.verified = result.ok
        if result.ok:
            record.ids = ""
            log.debug("replica %s: token ids compared, %d probes equal", replica.id, result.checked)
        else:
            record.ids = f"its token ids differ from the router's (probe {result.probe!r}): check models[].files and "
            record.ids += "tokenizer_class against the engine's model"
        self._judge(record)

    def _judge(self, record: Record) -> None:
        replica, reason = record.replica, record.reason(self._alert)
        if reason and not replica.distrust:
            log.warning("replica %s: %s; its cache is modelled instead", replica.id, reason)
        elif replica.distrust and not reason:
            log.info("replica %s: its token ids are the router's again", replica.id)
        replica.distrust = reason
        off = record.cached.samples >= _ALERT_SAMPLES and record.cached.drift > self._alert
        if off and not record.alerted:
            log.warning(
                "replica %s: predicted and actual cached tokens differ by %.0f %%",
                replica.id,
                100 * record.cached.drift,
            )
        record.alerted = off

    def _look_for(self, record: Record, prompt: Prompt) -> None:
        info = record.replica.info
        engine_block = max(prompt.block_size, (info.block_size if info else None) or 0)
        expected = min(len(prompt.chain), prompt.tokens // engine_block * engine_block // prompt.block_size)
        if not expected or len(self._looks) >= _MAX_WAITING:
            return
        now = asyncio.get_running_loop().time()
        clears, failures = self._feeds.history(record.replica.id)[0], self._feeds.failures
        self._looks.append(
            _Look(now + _LOOKS_S[0], now, 0, record, prompt.chain[:expected], expected, clears, failures)
        )
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look(), name="look for blocks")

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._looks:
            look = min(self._looks, key=lambda one: one.due)
            await asyncio.sleep(max(0.0, look.due - loop.time()))
            record, replica = look.record, look.record.replica
            if self._records.get(replica.id) is record and replica.feed is Feed.EVENTS:
                match = (await self._feeds.lookup(look.chain)).get(replica.id)
                look.best = max(look.best, match.blocks - match.predicted if match is not None else 0)
                look.step += 1
                if look.best < look.expected and look.step < len(_LOOKS_S):
                    look.due = look.began + _LOOKS_S[look.step]
                    continue
                # What a restart, a reset or a loss of events that was noticed took away, or an index that could not be
                # read hid, speaks of no token ids.
                now = self._feeds.history(replica.id)[0], self._feeds.failures
                undisturbed = self._feeds.answers and now == (look.clears, look.failures)
                if look.best == look.expected or undisturbed:
                    record.blocks.note(look.expected, look.best)
                    self._judge(record)
            self._looks.remove(look)
