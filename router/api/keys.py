"""API keys: who a request is from, and what that one may use.

A key is known by the SHA-256 of its text; looking it up compares hashes, so the time it takes says nothing about the
keys there are. Limits are token buckets that hold one minute's worth and refill evenly. A prompt's tokens are taken
when it is admitted, its completion's when it is done: a bucket may go below zero, and nothing more is admitted until
it is refilled. A prompt larger than the whole bucket is admitted when the bucket is full.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import yaml

from router.api.errors import ApiError
from router.http.errors import Headers
from router.http.message import Request

Positive = Annotated[int, msgspec.Meta(ge=1)]
Label = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
UNLIMITED_S = 60.0


class KeysError(ValueError):
    """A list of keys that can't be used; the message names the entry and the field."""


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One key. `sha256`: hex digest of the key; or `env`: name of the environment variable that holds the key itself.

    `name` stands in logs and metrics. Keys of one `tenant` share sessions and, with isolation, cached blocks; without
    a tenant a key belongs to the common one. `models`: the only ones it may use. Limits: unset means none.
    """

    name: Label
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")] | None = None
    env: str | None = None
    tenant: Label | None = None
    models: list[str] | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_concurrent: Positive | None = None


def digest(key: str) -> str:
    """The hash a key is known by."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def parse_keys(text: str, env: Mapping[str, str], before: Sequence[KeyEntry] = ()) -> list[KeyEntry]:
    """`before` and the keys that a YAML or JSON text lists, each with its hash. Raises KeysError. Example:

    - name: alice
      sha256: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
      tenant: research
      models: [Qwen/Qwen3-8B]
      requests_per_minute: 600
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise KeysError(f"{where}not valid YAML or JSON.") from None  # the text itself may hold secrets
    if isinstance(data, dict) and set(data) == {"keys"}:
        data = data["keys"]
    if not isinstance(data, list):
        raise KeysError("must be a list of keys such as `- name: alice` (nobody: `[]`).")
    found = list(before)
    for number, item in enumerate(data):
        try:
            entry = msgspec.convert(item, KeyEntry)
        except msgspec.ValidationError as error:
            raise KeysError(f"keys[{number}]: {error}.") from None
        if (entry.sha256 is None) == (entry.env is None):
            raise KeysError(f"keys[{number}] ({entry.name}): give `sha256` or `env`, one of them.")
        if entry.env is not None:
            if not env.get(entry.env):
                raise KeysError(f"keys[{number}].env: the environment variable {entry.env} is not set.")
            entry = msgspec.structs.replace(entry, sha256=digest(env[entry.env]))
        for known in found:
            if known.name == entry.name:
                raise KeysError(f"keys[{number}].name: {entry.name} is given twice; give each key its own name.")
            if known.sha256 == (entry.sha256 or "").lower():
                raise KeysError(f"keys[{number}]: {entry.name} is the same key as {known.name}.")
        found.append(msgspec.structs.replace(entry, sha256=(entry.sha256 or "").lower()))
    return found


class Bucket:
    """Refills `per_minute` evenly, holds as much; below zero after more was spent than admitted."""

    __slots__ = ("_level", "_rate", "_size", "_then")

    def __init__(self, per_minute: int, now: float) -> None:
        self._size = self._level = float(per_minute)
        self._rate = per_minute / UNLIMITED_S
        self._then = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; 0 if it can now."""
        self._level = min(self._size, self._level + (now - self._then) * self._rate)
        self._then = now
        return max(0.0, (min(amount, self._size) - self._level) / self._rate)

    def spend(self, amount: float) -> None:
        """Take it, whether it is there or not."""
        self._level -= amount

    def level(self, now: float) -> float:
        """What it holds."""
        self.wait_s(0, now)
        return self._level

    def lower(self, level: float) -> None:
        """It holds no more than that."""
        self._level = min(self._level, level)


class Usage:
    """What one key has used; counters never go back, `running` returns to zero."""

    __slots__ = ("refused", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.requests = self.tokens = self.running = 0
        self.refused: dict[str, int] = {}


class Key:
    """A configured key with its buckets. `usage` outlives a reload.

    What other workers let pass counts too: `running_elsewhere`, and `used_elsewhere`.
    """

    def __init__(self, entry: KeyEntry, clock: Callable[[], float], before: Key | None = None) -> None:
        self.entry = entry
        self.tenant = entry.tenant or ""
        self.usage: Usage = before.usage if before is not None else Usage()
        self.running_elsewhere: int = before.running_elsewhere if before is not None else 0
        self.limited = any((entry.requests_per_minute, entry.tokens_per_minute, entry.max_concurrent))
        now = clock()
        self._clock = clock
        self._requests = Bucket(entry.requests_per_minute, now) if entry.requests_per_minute else None
        self._tokens = Bucket(entry.tokens_per_minute, now) if entry.tokens_per_minute else None
        if before is not None and before.entry.requests_per_minute == entry.requests_per_minute:
            self._requests = before._requests
        if before is not None and before.entry.tokens_per_minute == entry.tokens_per_minute:
            self._tokens = before._tokens

    def refuse(self, reason: str, error: ApiError) -> ApiError:
        """`error`, counted."""
        self.usage.refused[reason] = self.usage.refused.get(reason, 0) + 1
        return error

    def begin(self) -> None:
        """Admit a request. Raises ApiError (429)."""
        most = self.entry.max_concurrent
        if most is not None and self.usage.running + self.running_elsewhere >= most:
            message = f"This key may have {most} requests running at once; wait until one is done."
            raise self.refuse("concurrent", _too_many(message, "concurrency_limit_exceeded", 1.0))
        if self._requests is not None:
            wait = self._requests.wait_s(1, self._clock())
            if wait:
                message = f"This key may send {self.entry.requests_per_minute} requests a minute."
                raise self.refuse("requests", _too_many(message, "rate_limit_exceeded", wait))
            self._requests.spend(1)
        self.usage.requests += 1
        self.usage.running += 1

    def charge(self, tokens: int) -> None:
        """Admit a prompt. Raises ApiError (429)."""
        if self._tokens is not None:
            wait = self._tokens.wait_s(tokens, self._clock())
            if wait:
                message = f"This key may use {self.entry.tokens_per_minute} tokens a minute; this prompt has {tokens}."
                raise self.refuse("tokens", _too_many(message, "rate_limit_exceeded", wait))
        self.spend(tokens)

    def spend(self, tokens: int) -> None:
        """Count tokens that were used, admitted or not."""
        if self._tokens is not None:
            self._tokens.spend(tokens)
        self.usage.tokens += tokens

    def levels(self) -> tuple[float | None, float | None]:
        """What the buckets of requests and tokens hold; None without one."""
        now = self._clock()
        buckets = self._requests, self._tokens
        requests, tokens = (None if each is None else each.level(now) for each in buckets)
        return requests, tokens

    def lower(self, levels: tuple[float | None, float | None]) -> None:
        """Another worker's buckets, that were there before, hold no more than that."""
        for bucket, level in zip((self._requests, self._tokens), levels, strict=True):
            if bucket is not None and level is not None:
                bucket.lower(level)

    def used_elsewhere(self, requests: int, tokens: int) -> None:
        """Another worker let so much pass."""
        for bucket, amount in ((self._requests, requests), (self._tokens, tokens)):
            if bucket is not None:
                bucket.spend(amount)


def _too_many(message: str, code: str, wait_s: float) -> ApiError:
    return ApiError(429, f"Rate limit reached. {message}", code=code, retry_after_s=max(1, math.ceil(wait_s)))


class Grant:
    """One request's leave to pass. `begin` it, `charge` the prompt, `settle` the answer, and `end` it however it went.

    `tenant` is empty for the common one. `hides_matches`: the receipt must not tell what other tenants have cached.
    """

    __slots__ = ("_began", "_key", "_prompt", "hides_matches", "tenant")

    def __init__(self, key: Key | None, hides_matches: bool = False) -> None:
        self._key = key
        self._began = False
        self._prompt = 0
        self.tenant = "" if key is None else key.tenant
        self.hides_matches = hides_matches

    def may_use(self, model: str | None) -> bool:
        """Whether the key's list of models has this one; a request that names none needs an open list."""
        return self._key is None or self._key.entry.models is None or model in self._key.entry.models

    def begin(self, model: str | None, lora: object = None) -> None:
        """Admit the request. `lora`: its `lora_path`, SGLang adapters beside it. Raises ApiError (403, 429)."""
        if self._key is None:
            return
        adapters = lora if isinstance(lora, list) else [lora]
        for wanted in [model, *(f"{model}:{name}" for name in adapters if name and not self.may_use(str(name)))]:
            if self.may_use(wanted):
                continue
            allowed = ", ".join(self._key.entry.models or ()) or "none"
            message = f"This key may not use the model `{wanted}`" if wanted else "This key must name a model"
            error = ApiError(403, f"{message}. It may use: {allowed}.", param="model", code="model_not_allowed")
            raise self._key.refuse("model", error)
        self._key.begin()
        self._began = True

    def charge(self, prompt_tokens: int) -> None:
        """Admit the prompt. Raises ApiError (429)."""
        if self._key is not None:
            self._key.charge(prompt_tokens)
            self._prompt = prompt_tokens

    def settle(self, prompt_tokens: int | None, completion_tokens: int) -> None:
        """Count the answer's tokens, and what the prompt's own count was off by. `prompt_tokens` None: not told."""
        if self._key is not None:
            self._key.spend(completion_tokens + (0 if prompt_tokens is None else prompt_tokens - self._prompt))

    def end(self) -> None:
        """The request is over."""
        if self._key is not None and self._began:
            self._key.usage.running -= 1
            self._began = False

    def visible(self, receipt: Headers) -> Headers:
        """The receipt's headers that this one may see."""
        return [header for header in receipt if header[0] not in _TELLING] if self.hides_matches else receipt

    def session(self, name: str | None) -> str | None:
        """A session's name that no other tenant's session can have."""
        return f"{self.tenant}:{name}" if name is not None and self.tenant else name


_TELLING = frozenset((b"x-prefix-router-reason", b"x-prefix-router-matched-tokens"))
OPEN = Grant(None)
"""What everyone has where no keys are configured."""

NO_KEY = "No API key was given. Send it as `Authorization: Bearer KEY` (or `x-api-key: KEY`)."


class Gate:
    """All keys. Without any configured (`entries` None) everyone passes."""

    def __init__(
        self, entries: Sequence[KeyEntry] | None, *, salted: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self.closed = False
        self.refused = 0
        """Requests without a valid key."""
        self.configure(entries, salted=salted)

    def configure(self, entries: Sequence[KeyEntry] | None, *, salted: bool) -> None:
        """Take other keys; those that stay keep their counts, and buckets whose limit stays keep their level."""
        before = {key.entry.name: key for key in self._keys.values()}
        self._keys = {str(entry.sha256): Key(entry, self._clock, before.get(entry.name)) for entry in entries or ()}
        self.closed = entries is not None
        self.salted = salted
        self._several = len({key.tenant for key in self._keys.values()}) > 1

    def __iter__(self) -> Any:
        return iter(self._keys.values())

    def tenant(self, text: str) -> str | None:
        """Whose an API key is; None if it is not known."""
        key = self._keys.get(digest(text))
        return None if key is None else key.tenant

    @property
    def hides_matches(self) -> bool:
        """Whether what the caches hold would tell a tenant of another's prompts."""
        return self._several and not self.salted

    def enter(self, request: Request) -> Grant:
        """Whose request it is. Raises ApiError (401)."""
        if not self.closed:
            return OPEN
        given = list(_given(request))
        for text in given:
            key = self._keys.get(hashlib.sha256(text).hexdigest())
            if key is not None:
                return Grant(key, hides_matches=self._several)
        self.refused += 1
        raise ApiError(401, "The API key is not valid here." if given else NO_KEY, code="invalid_api_key")


def _given(request: Request) -> Any:
    """The keys a request carries: Authorization's bearer token, Anthropic's x-api-key."""
    scheme, _, token = (request.header(b"authorization") or b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        yield token.strip()
    named = request.header(b"x-api-key")
    if named:
        yield named
