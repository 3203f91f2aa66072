"""Explain a failed spec of the cache to somebody who has not read the code: which write, which page, which values, which tags, which lines.

Each page of the spec is read once more from the database, and compared with its last response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.test import Client

from tests.trace import UNDONE, Step, Trace

SHOWN = 6
"""How many differences, writes and statements a failure shows for each page."""

PROMISED = "promised: a response shows every write that was committed before its request, and an entry stays warm unless a write touches one of its tags"

TO_DO = {
    "stale, no tag in common": "the write and the entry have no tag in common, so the write did not make the entry stale. Find the missing tag: writes are\n"
    "          tagged in housing/freshness/compiler.py and tracking.py, entries in housing/freshness/dependencies.py.",
    "stale, no lease": "no write opened a lease, so the journal in Redis knows of none. Check that the write was tagged, that no rollback dropped its tags,\n"
    "          and that the COMMIT opened a lease (housing/freshness/connection.py).",
    "stale, tags in common": "a write touched tags of the entry, but the entry counted as fresh. Check how a lease and a close are recorded and compared\n"
    "          (housing/freshness/journal.lua), and that the lease was opened before the COMMIT and closed after it.",
    "over-invalidated, tags in common": "a write touched tags of the entry, but the page has the same bytes. The write should touch, and the entry have,\n"
    "          only tags of rows and columns that the page shows, selects or orders by.",
    "over-invalidated, no tag in common": "no write touched a tag of the entry, but the entry counted as stale. Check whether it expired, and how tags are\n"
    "          compared (housing/freshness/journal.lua).",
    "not stored": "the detail in Cache-Status says why: leased (the lease of a COMMIT on one of its tags was open), raced (a write overtook the read),\n"
    "          recovering (the journal was just created), transaction (read inside a transaction), accept (not JSON), unreachable (Redis).",
    "": 'no page is wrong now. If the spec expected "hit", check whether a write made the entry stale. If it expected another value, check that\n'
    "          the write was committed, and before the read.",
}
"""The fault of a page → what to do."""


@dataclass
class Write:
    """A transaction that ended: its statements, its lease if it opened one, and its COMMIT or ROLLBACK."""

    statements: list[Step]
    lease: Step | None
    end: Step

    @property
    def tags(self) -> frozenset[str]:
        """The tags that it touched."""
        return self.lease.tags if self.lease else frozenset()


def writes_of(steps: Iterable[Step]) -> list[Write]:
    """The transactions with writes, in the order in which they ended."""
    statements: dict[Any, list[Step]] = {}
    leases: dict[Any, Step] = {}
    ended = []
    for step in steps:
        if step.is_write or (step.what == UNDONE and step.operation in statements):
            statements.setdefault(step.operation, []).append(step)
        elif step.what == "lease":
            leases[step.operation] = step
        elif step.what in ("COMMIT", "ROLLBACK") and step.operation in statements:
            ended.append(Write(statements.pop(step.operation), leases.pop(step.operation, None), step))
    return ended


@dataclass
class Page:
    """A page that the spec read: its last response, the one before, the tags of its entry, and the writes after the entry was stored."""

    last: Step
    before: Step | None
    stored: Step | None
    writes: list[Write]
    later: list[Write]

    @property
    def tags(self) -> frozenset[str]:
        """The tags of the entry."""
        return self.stored.tags if self.stored else frozenset()

    def common(self, write: Write) -> frozenset[str]:
        """The tags that both have."""
        return self.tags & write.tags


def pages_of(steps: Sequence[Step]) -> Iterator[Page]:
    """The cached pages that were read, in the order of their last responses. A write counts for a page if it ended after its entry was stored."""
    writes = writes_of(steps)
    responses: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        if step.response is not None and step.entry:
            responses.setdefault(step.entry, []).append(number)
    for entry, numbers in sorted(responses.items(), key=lambda item: item[1][-1]):
        last = numbers[-1]
        begun = next((number for number, step in enumerate(steps) if step.operation is steps[last].operation), last)
        stored = [number for number in range(begun) if steps[number].entry == entry and steps[number].what == "store: stored"]
        since = stored[-1] if stored else 0
        ended = [(steps.index(write.end), write) for write in writes]
        yield Page(
            steps[last],
            steps[numbers[-2]] if numbers[1:] else None,
            steps[stored[-1]] if stored else None,
            [write for at, write in ended if since < at < last],
            [write for at, write in ended if at > begun and write.end.what == "COMMIT"],
        )


def read_again(step: Step) -> tuple[int, bytes]:
    """The status and the body of the same request, read from the database. In a transaction the cache is bypassed."""
    request = step.response.wsgi_request
    with transaction.atomic():
        response = Client().get(request.get_full_path(), headers={"accept": request.headers.get("Accept", "*/*")})
    return response.status_code, response.content


def differences(was: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two JSON values differ, as `results[0].price: "300000.00" was served, "1.00" is in the database`."""
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        for key in was:
            yield from differences(was[key], now[key], f"{path}.{key}".lstrip("."))
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for place, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, f"{path}[{place}]")
    elif isinstance(was, list) and isinstance(now, list):
        yield f"{path}: {len(was)} rows were served, {len(now)} are in the database"
    elif was != now:
        yield f"{path}: {_brief(was)} was served, {_brief(now)} is in the database"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]} …"


def tags_in_words(tags: Iterable[str]) -> str:
    """Tags, of which many rows of one table are put together: `housing_agent:1 to housing_agent:20 (20 tags)`."""
    groups: dict[str, list[str]] = {}
    for tag in sorted(tags, key=lambda tag: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", tag)]):
        groups.setdefault(re.sub(r":[^:]+$", ":", tag) if re.search(r":\d", tag) else tag, []).append(tag)
    parts = [f"{group[0]} to {group[-1]} ({len(group)} tags)" if len(group) > 3 else ", ".join(group) for group in groups.values()]
    return ", ".join(parts) or "none"


def verdict_of(page: Page, status: int, body: bytes) -> tuple[str, list[str]]:
    """The fault of a page's last response, as a key of TO_DO, and the values that show it. The page read from the database has this status and body."""
    response = page.last.response
    served = response.headers.get("Cache-Status", "")
    is_touched = "tags in common" if any(page.common(write) for write in page.writes) else "no tag in common"
    if not page.later and response.status_code == 200 and (status, body) != (200, response.content):
        values = list(differences(json.loads(response.content), json.loads(body))) if status == 200 else [f"200 was served, {status} is right"]
        return f"stale, {is_touched if any(write.lease for write in page.writes) else 'no lease'}", values
    if "detail=" in served:
        return "not stored", [f"the response was not stored: {served.rpartition('detail=')[2]}"]
    if "fwd=stale" in served and page.before and page.before.response.content == response.content:
        return f"over-invalidated, {is_touched}", ["the bytes are the same as before, so the entry could have stayed warm"]
    return "", []


def explanation(trace: Trace) -> str | None:
    """The explanation, or None if the spec read no cached page."""
    own, steps = list(trace.steps), [*trace.before, *trace.steps]  # a copy, because reading again adds steps
    lines: list[str] = []
    found: dict[str, str] = {}
    for page in (pages := list(pages_of(steps))):
        try:
            verdict, values = verdict_of(page, *read_again(page.last))
        except Exception as error:  # noqa: BLE001  # the spec's own failure must be shown, whatever is wrong with the database
            verdict, values = "", []
            lines.append(f"  page    {page.last.what}\n          It could not be read again, so it is not compared with the database: {error!r}")
        if verdict:
            found[verdict] = TO_DO[verdict]
            lines += _in_words(page, values)
    to_do = [f"to do:    {advice}" for advice in found.values()] or [f"to do:    {TO_DO['']}"]
    return "\n".join([PROMISED, "happened:", *lines, *_history(own), *to_do]) if pages else None


def _in_words(page: Page, values: Sequence[str]) -> Iterator[str]:
    """The lines about a page."""
    yield f"  page    {page.last.what}"
    yield f"          read at {page.last.line}"
    yield from (f"  value   {value}" for value in values[:SHOWN])
    if values[SHOWN:]:
        yield f"          and {len(values) - SHOWN} more differences"
    written = {table for write in page.writes for statement in write.statements for table in re.findall(r"\w+", statement.what)}
    about = frozenset(tag for tag in page.tags if re.split(r"[.:]", tag)[0] in written)
    if page.stored:
        yield f"  entry   has the tags: {tags_in_words(about)}"
        yield f"          of other tables: {tags_in_words(page.tags - about)}"
    for write in page.writes[-SHOWN:]:
        for statement in write.statements[-SHOWN:]:
            yield f"  write   {statement.sql}"
            yield f"          sent at {statement.line}"
        yield f"          {write.end.what}, with the tags: {_touched(write)}"
        yield f"          of these the entry has: {tags_in_words(page.common(write))}"


def _touched(write: Write) -> str:
    if write.lease:
        return tags_in_words(write.tags)
    return "none, because a rollback touches nothing" if write.end.what == "ROLLBACK" else "none, because no lease was opened"


def _history(steps: Iterable[Step]) -> Iterator[str]:
    """The newest responses, writes and leases, each with its line."""
    ends = {id(write.end) for write in writes_of(steps)}
    told = [step for step in steps if step.response is not None or step.is_write or step.what in ("lease", "close", "withdraw", UNDONE) or id(step) in ends]
    yield "  steps   of the spec, the newest last"
    for step in told[-3 * SHOWN :]:
        yield f"          {step.what:50}  {step.line}"
