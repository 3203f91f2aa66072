"""`manage.py import_listings FILE --mapping MAPPING`: import a CSV file."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from argparse import ArgumentParser
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import and_
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, reset_queries, transaction
from django.db.models import Min, Model, Q
from tqdm import tqdm

from housing.listings import Listing, Mapping, Record, Refused, Row, Unusable, record, rows
from housing.models import Agent, Location, Office, Property

BATCH = 500
"""How many rows are looked up and written together."""

NAMED_LINES = 5
"""How many line numbers the summary has for each reason."""


@dataclass
class Refusals:
    """Rows refused for the same reason: the message of the first one, their count, and the first line numbers."""

    example: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        also = f"; also lines {', '.join(map(str, self.lines[1:]))}" if self.lines[1:] else ""
        more = ", …" if self.count > len(self.lines) else ""
        return f"{self.count:,} × {self.example} (line {self.lines[0]}{also}{more})"


@dataclass
class Tally:
    """The counts of imported, known and refused rows."""

    read: int = 0
    imported: int = 0
    known: int = 0
    refusals: dict[str, Refusals] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """The number of refused rows."""
        return sum(refusals.count for refusals in self.refusals.values())

    def refuse(self, line: int, refused: Refused) -> None:
        """Count a refused row, and keep its line number if it is among the first."""
        refusals = self.refusals.setdefault(refused.kind, Refusals(str(refused)))
        refusals.count += 1
        if len(refusals.lines) < NAMED_LINES:
            refusals.lines.append(line)

    def __str__(self) -> str:
        counts = f"{self.read:,} rows read: {self.imported:,} imported, {self.known:,} already there, {self.refused:,} refused"
        return "\n  ".join([counts + (":" if self.refusals else "."), *map(str, self.refusals.values())])


class Occurrences:
    """Counts equal rows in a file. A temporary SQLite database keeps the counts on disk, so memory does not grow with the file."""

    def __init__(self) -> None:
        self._scratch = sqlite3.connect("")
        self._scratch.execute("CREATE TABLE met (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")

    def count(self, digest: bytes) -> int:
        """Count a row, and return how many equal rows there are so far."""
        self._scratch.execute("INSERT INTO met VALUES (?, 1) ON CONFLICT (digest) DO UPDATE SET times = times + 1", [digest])
        times: int = self._scratch.execute("SELECT times FROM met WHERE digest = ?", [digest]).fetchone()[0]
        return times

    def close(self) -> None:
        """Remove the temporary database."""
        self._scratch.close()


class Import:
    """An import of one file, in the caller's transaction."""

    def __init__(self, mapping: Mapping, *, dry_run: bool, quiet: bool) -> None:
        self.mapping = mapping
        self.dry_run = dry_run
        self.quiet = quiet
        self.tally = Tally()
        self.spellings = {(model, name): _spellings(model, name) for model, rules in mapping.rules.items() for name, rule in rules.items() if rule.fold}

    def run(self, path: Path) -> Tally:
        """Import the file batch by batch, and return the counts. Raises Unusable."""
        with closing(rows(path)) as found, closing(Occurrences()) as occurrences:
            header = next(found).cells
            self.mapping.check(header)
            with tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=self.quiet or None) as bar:
                while batch := list(islice(found, BATCH)):
                    self._take(header, batch, occurrences)
                    bar.update(batch[-1].position - bar.n)
                    reset_queries()  # in debug, Django keeps every statement in memory
        return self.tally

    def _take(self, header: list[str], batch: list[Row], occurrences: Occurrences) -> None:
        usable: dict[str, Listing] = {}
        for row in batch:
            try:
                cells = record(header, row.cells)
                listing = self._spelled(self.mapping.listing(cells))
            except Refused as refused:
                self.tally.refuse(row.line, refused)
            else:
                usable[_hash(cells, occurrences)] = listing
        known = set(Property.objects.filter(record_hash__in=usable).values_list("record_hash", flat=True))
        fresh = {record_hash: listing for record_hash, listing in usable.items() if record_hash not in known}
        if fresh and not self.dry_run:
            _write(fresh)
        self.tally.read += len(batch)
        self.tally.known += len(known)
        self.tally.imported += len(fresh)

    def _spelled(self, listing: Listing) -> Listing:
        """Give names that differ only in case one spelling: that of the database, or otherwise the first in the file."""
        for (model, name), spellings in self.spellings.items():
            if (text := listing[model][name]) is not None:
                listing[model][name] = spellings.setdefault(text.casefold(), text)
        return listing


def _spellings(model: type[Model], name: str) -> dict[str, str]:
    stored = model._default_manager.exclude(**{name: None}).values_list(name).annotate(first=Min("pk")).order_by("-first")
    return {text.casefold(): text for text, _ in stored}


def _hash(cells: Record, occurrences: Occurrences) -> str:
    """Return the hash of a row, which ignores the order of columns. A repeated row gets another hash by its number."""
    digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    if (times := occurrences.count(digest.digest())) > 1:
        digest.update(str(times).encode())
    return digest.hexdigest()


def _write(listings: dict[str, Listing]) -> None:
    """Create a property for each listing, and missing locations, agents and offices."""
    offices = _stored(Office, [listing[Office] for listing in listings.values()])
    agents = _stored(Agent, [listing[Agent] | {"office_id": office} for listing, office in zip(listings.values(), offices, strict=True)])
    locations = _stored(Location, [listing[Location] for listing in listings.values()])
    Property.objects.bulk_create(
        Property(**listing[Property], record_hash=record_hash, agent_id=agent, location_id=location)
        for (record_hash, listing), agent, location in zip(listings.items(), agents, locations, strict=True)
    )


def _stored(model: type[Model], wanted: list[dict[str, Any]]) -> list[int]:
    """Return the ids of rows with these values, in the same order. Missing rows are created once."""
    names = list(wanted[0])
    distinct = {tuple(values.values()): values for values in wanted}
    # One condition for each field instead of each row, so the table is read once. It may find more rows than wanted.
    near = reduce(and_, (_among(name, set(column)) for name, column in zip(names, zip(*distinct, strict=True), strict=True)))
    ids = {tuple(key): pk for pk, *key in model._default_manager.filter(near).order_by("-pk").values_list("pk", *names)}  # the oldest of equal rows
    created = model._default_manager.bulk_create(model(**values) for key, values in distinct.items() if key not in ids)
    ids |= {tuple(getattr(row, name) for name in names): row.pk for row in created}
    return [ids[tuple(values.values())] for values in wanted]


def _among(name: str, values: set[Any]) -> Q:
    return Q(**{f"{name}__in": values - {None}}) | (Q(**{name: None}) if None in values else Q())


class Command(BaseCommand):
    """Imports a file; see `help`."""

    help = (
        "Import property listings from a CSV file (UTF-8, plain or gzip). A mapping (TOML; see housing/mappings/) assigns columns to fields. "
        "Each valid row becomes one property, identified by a hash of its cells. Importing a file twice adds nothing, even with another mapping. "
        "Refused rows are counted and listed by reason. Everything happens in one transaction."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the file, the mapping and the options."""
        parser.add_argument("file", type=Path, metavar="FILE", help="listings, .csv or .csv.gz")
        parser.add_argument("--mapping", type=Path, required=True, metavar="MAPPING", help="mapping of columns to fields, .toml")
        parser.add_argument("--dry-run", action="store_true", help="write nothing, and print what an import would do")
        parser.add_argument("--strict", action="store_true", help="import nothing if any row is refused")

    def handle(self, *, file: Path, mapping: Path, dry_run: bool, strict: bool, verbosity: int, **_: Any) -> None:
        """Import, and print the counts. Raises CommandError if the file or the mapping is invalid, and for refused rows with --strict."""
        try:
            with transaction.atomic():
                tally = Import(Mapping.load(mapping), dry_run=dry_run, quiet=not verbosity).run(file)
                if strict and tally.refused:
                    raise CommandError(f"Nothing was imported (--strict), because rows were refused. {tally}")
        except Unusable as error:
            raise CommandError(f"Nothing was imported. {error}") from error
        except DatabaseError as error:
            raise CommandError(f"Nothing was imported. Database error: {error}") from error
        if verbosity:
            self.stdout.write(f"Nothing was written (--dry-run). An import would have this result: {tally}" if dry_run else str(tally))
