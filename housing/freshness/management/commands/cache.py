"""`manage.py cache`: look at the cache, invalidate what it holds, and compare it with the database."""

from __future__ import annotations

import json
import random
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.db.models import Model

from ... import operations
from ...breaker import Unreachable
from ...comparison import OUTCOMES, Compared, compare, sample
from ...identity import Unidentified
from ...journal import Lease, journal
from ...tracking import tracked
from .leases import described

NOT_COMPARED = {"changed", "unknown"}
"""The outcomes of entries that could not be compared."""

SAMPLE = 100
"""How many entries `verify` compares by default."""


def positive(text: str) -> int:
    """Return the whole number in an argument. Raises ArgumentTypeError unless it is at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


class Command(BaseCommand):
    """Three subcommands. Their exit code is 0, or 1 after an error and if `verify` found a stale entry or could compare none, or 2 for wrong arguments."""

    help = "Look at the cache, invalidate what it holds, or compare it with the database."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the subcommands."""
        subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND", title="subcommands")

        def subcommand(name: str, run: Callable[..., None], what: str, more: str) -> ArgumentParser:
            added: ArgumentParser = subcommands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. {more}")
            added.set_defaults(run=run)
            return added

        status = subcommand("status", self.status, "show the state of the cache", "It changes nothing.")
        status.add_argument("--json", action="store_true", dest="as_json", help="print JSON")

        invalidate = subcommand(
            "invalidate", self.invalidate, "make cached responses stale", "When the command has ended, no response that was read before is served."
        )
        invalidate.add_argument("model", nargs="?", metavar="MODEL", help="a tracked model, as app_label.Model")
        invalidate.add_argument("rows", nargs="*", metavar="PK", help="primary keys of its rows (default: all rows)")
        invalidate.add_argument("--all", action="store_true", dest="everything", help="invalidate every response of every model")

        verify = subcommand(
            "verify",
            self.verify,
            "compare cached responses with the database",
            "It prints each that would be served although it differs. A write between the two reads is not a difference. "
            "The exit code is 1 if an entry differs, or if none could be compared.",
        )
        which = verify.add_mutually_exclusive_group()
        which.add_argument("--sample", type=positive, default=SAMPLE, metavar="N", help="how many entries to compare, drawn at random (default: %(default)s)")
        which.add_argument("--path", metavar="URL", help="compare only the response at this URL or path, such as /api/…")

    def handle(self, *args: Any, run: Callable[..., None], **options: Any) -> None:
        """Run the subcommand. Raises CommandError if Redis or the database is unreachable."""
        with as_command_errors():
            run(**options)

    # status

    def status(self, *, as_json: bool, **_: Any) -> None:
        """Print the state."""
        state = operations.status()
        if as_json:
            self.stdout.write(json.dumps(state, indent=2))
            return
        for name, text in lines_of(state):
            self.stdout.write(f"{name:<14}{text}")

    # invalidate

    def invalidate(self, *, model: str | None, rows: list[str], everything: bool, **_: Any) -> None:
        """Invalidate everything, a model or rows."""
        if everything is (model is not None):
            raise CommandError("Name either a model, such as `cache invalidate app_label.Model 7`, or --all.")
        if everything:
            journal.invalidate_everything()
            self.stdout.write("Every cached response is stale.")
            return
        found = model_named(str(model))
        try:
            whole = operations.tags_of_model(found)
            parts = {row: operations.tags_of_row(found, row) for row in rows}
        except ValidationError as wrong:
            raise CommandError(f"Not a primary key of {model}: {' '.join(wrong.messages)}") from None
        except operations.NotTracked as why:
            raise CommandError(str(why)) from None
        unknown = [row for row, tags in parts.items() if tags is None]
        operations.invalidate(whole if unknown or not rows else {tag for tags in parts.values() for tag in tags or ()})
        for row in unknown:
            self.stdout.write(f"There is no row {row}, or its tags are not known, so the whole table is invalidated.")
        self.stdout.write(f"Every cached response that depends on {found._meta.label} {'' if unknown else ', '.join(rows)}".rstrip() + " is stale.")

    # verify

    def verify(self, *, path: str | None, sample: int, **_: Any) -> None:
        """Compare, and print the stale entries. Raises CommandError if there is one, or if no entry could be compared."""
        keys = [key_of(path)] if path else chosen(sample)
        if not keys:
            self.stdout.write("Nothing is cached.")
            return
        results = list(self._with_progress(keys))
        for result in results:
            if result.outcome == "stale":
                self.stdout.write(told(result))
        for (outcome, why), times in Counter((result.outcome, result.why) for result in results).items():
            if outcome in NOT_COMPARED or (outcome == "not served" and path):
                self.stdout.write(f"{times} {outcome}: {why}.")
        counts = Counter(result.outcome for result in results)
        summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        summary = f"{len(keys)} {'entry' if len(keys) == 1 else 'entries'}: {summary}."
        if counts["stale"] or counts.keys() <= NOT_COMPARED:
            raise CommandError(summary)
        self.stdout.write(summary)

    def _with_progress(self, keys: list[str]) -> Iterator[Compared]:
        """Compare these entries, and on a terminal show how many are done."""
        for done, key in enumerate(keys):
            self._show(f"\r{done} of {len(keys)} ")
            yield compare(key)
        self._show("\r\033[K")

    def _show(self, text: str) -> None:
        if self.stderr.isatty():
            self.stderr.write(text, str, ending="")
            self.stderr.flush()


@contextmanager
def as_command_errors() -> Iterator[None]:
    """Turn the errors of the servers into one line."""
    try:
        yield
    except (Unreachable, Unidentified, operations.NotAsked, operations.NotListed) as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        raise CommandError(f"Database error: {' '.join(str(error).split())}") from error


def model_named(label: str) -> type[Model]:
    """Return the model with this label. Raises CommandError if no model has it."""
    app, _, name = label.partition(".")
    try:
        return apps.get_model(app, name)
    except (LookupError, ValueError):
        raise CommandError(f"There is no model {label!r}. Write it as app_label.Model, such as {tracked()[0]._meta.label}.") from None


def key_of(path: str) -> str:
    """Return the key of the response at this path."""
    with operations.asking(path) as asked:
        return asked.key


def chosen(size: int) -> list[str]:
    """Return the keys of entries that are drawn at random."""
    return sample(size, random.Random())


def told(result: Compared) -> str:
    """Return what an operator needs to know of a stale entry."""
    return "\n".join(
        [
            f"STALE  {result.address}",
            f"  key         {result.key}",
            f"  age         {result.age:.1f} s",
            f"  ETag        {result.cached_etag} in the cache, {result.true_etag} in the database",
            f"  difference  {result.why}",
        ]
    )


def lines_of(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the state of the cache as names and sentences."""
    yield "server", state["server"]
    if not state["journal"]:
        yield "journal", "none yet; the first read or write creates it"
    else:
        last, recorded = (duration(state["journal"][name]) for name in ("seconds_since_last_instant", "seconds_recorded"))
        yield "journal", f"its last instant was {last} ago, and it has the writes of the last {recorded}"
    yield "leases", f"{len(state['leases']) or 'none'} open"
    for lease in state["leases"]:
        yield "", f"{lease['id']}  {lease['seconds_left']:.1f} s left  {described(Lease(lease['id'], tuple(lease['tags'])))}"
    for database in state["databases"]:
        yield "database", _database(database)
    if "entries" in state:
        entries = state["entries"]
        yield "entries", entries["error"] or f"{'' if entries['is_all'] else 'more than '}{entries['count']:,}"
    memory = state["memory"]
    limit = f"of at most {size(memory['limit'])}" if memory and memory["limit"] else "without a limit"
    yield "memory", f"{size(memory['used'])} used by the server, {limit}" if memory else "not known, because the server has no INFO"


def _database(database: dict[str, Any]) -> str:
    verified, rows = database["seconds_since_verified"], database["outbox_rows"]
    found = "never verified, so nothing is served from the cache" if verified is None else f"verified {duration(verified)} ago"
    found += f", {rows:,} {'row' if rows == 1 else 'rows'} in the outbox" if rows is not None else ""
    return f"{database['alias']}: {database['error'] or found}"


def duration(seconds: float) -> str:
    """Return seconds as a text of about two digits."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Return a number of bytes as a text."""
    for unit in ("B", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
