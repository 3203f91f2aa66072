"""Compare entries with the database: an entry that would be served, and whose bytes are not those of the database, is a broken promise.

The idea is that of Polaris, which watches the caches of Meta from outside ("Cache made consistent", 2022). The journal alone
decides whether an entry is fresh, and a write between the two reads is no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import Any

from django.http import Http404

from . import watchman
from .connection import ours
from .entries import etag_of
from .journal import Inspected, journal
from .operations import Asked, NotAsked, asking, keys
from .views import NotCached

ATTEMPTS = 2
"""How often an entry is compared that a write changes meanwhile."""

NOTHING = object()


OUTCOMES = {
    "equal": "The entry equals the database.",
    "stale": "It differs, and it would be served.",
    "not served": "A write made it stale, so it is not served.",
    "changed": "A write raced each comparison.",
    "unknown": "It cannot be read from the database again.",
}
"""The possible outcomes of a comparison, and what each means."""


@dataclass(frozen=True)
class Compared:
    """The result for one entry: one of OUTCOMES, and why."""

    key: str
    outcome: str
    why: str = ""
    address: str = ""
    age: float = 0
    cached_etag: str = ""
    true_etag: str = ""


def sample(size: int, draws: Random) -> list[str]:
    """Return the keys of this many entries, each as likely as the others (reservoir sampling). Raises NotListed, and Unreachable."""
    chosen: list[str] = []
    for seen, key in enumerate(keys()):
        if seen < size:
            chosen.append(key)
        elif (place := draws.randrange(seen + 1)) < size:
            chosen[place] = key
    return chosen


def compare(key: str) -> Compared:
    """Compare an entry with the database. Raises Unreachable, Unidentified, and DatabaseError."""
    for _ in range(ATTEMPTS):
        seen = journal.inspect(key)
        if seen is None or not seen.is_trusted:
            return Compared(key, "not served", "there is no such entry" if seen is None else f"{seen.verdict} {seen.which}".strip())
        result = _compare(key, seen)
        if result.outcome != "changed":
            break
    return result


def _compare(key: str, seen: Inspected) -> Compared:
    try:
        with asking(seen.address) as asked:
            if asked.key != key:
                return Compared(key, "unknown", "it belongs to another version of the code or the settings, or to another database", seen.address)
            body = _read(asked)
            if body == seen.body and seen.etag == etag_of(body):
                return Compared(key, "equal", address=seen.address)
            # A write between the two reads is in the journal, or in the outbox. So if the entry is still trusted after a verification, it is stale.
            if not watchman.verify(ours(asked.using), at_once=True):
                return Compared(key, "unknown", "the journal or the database changed meanwhile", seen.address)
    except NotAsked as why:
        return Compared(key, "unknown", str(why), seen.address)
    now = journal.inspect(key)
    if now is None or not now.is_trusted or (now.read_at, now.body) != (seen.read_at, seen.body):
        return Compared(key, "changed", "writes raced each comparison", seen.address)
    true = etag_of(body) if body is not None else "none, because the response is not a 200"
    return Compared(key, "stale", difference(seen.body, body), seen.address, now.age, seen.etag, true)


def _read(asked: Asked) -> bytes | None:
    """The body in the database, or None if the response would not be stored."""
    try:
        return asked.read()
    except (Http404, NotCached):
        return None


def difference(cached: bytes, true: bytes | None) -> str:
    """Return the first place at which two bodies differ, with both values."""
    if true is None:
        return "the database has no such response"
    try:
        for place, one, other in _differences(json.loads(cached), json.loads(true), ""):
            return f"{place or 'the body'} is {_text(one)} in the cache and {_text(other)} in the database"
    except ValueError:
        pass
    at = next((at for at, (one, other) in enumerate(zip_longest(cached, true)) if one != other), None)
    return "the bodies are equal, and the ETag is that of other bytes" if at is None else f"byte {at} differs, and the JSON is equal or invalid"


def _differences(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            yield from _differences(one.get(name, NOTHING), other.get(name, NOTHING), f"{place}.{name}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list):
        for at, (left, right) in enumerate(zip_longest(one, other, fillvalue=NOTHING)):
            yield from _differences(left, right, f"{place}[{at}]")
    elif type(one) is not type(other) or one != other:
        yield place, one, other


def _text(value: Any) -> str:
    text = "missing" if value is NOTHING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:99]}…"
