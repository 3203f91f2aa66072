"""`manage.py import_listings FILE --mapping MAPPING`: import a file of listings."""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import and_
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, reset_queries, transaction
from django.db.models import Min, Model, Q
from django.utils.text import Truncator
from tqdm import tqdm

from housing.listings import Fault, Listing, Mapping, Record, Refused
from housing.models import Agent, Location, Office, Property, PropertyImage
from housing.tables import Columns, Row, Unusable, rows

BATCH = 500
"""How many rows are looked up and written together."""

NAMED_LINES = 5
"""How many line numbers the summary has for each value."""

NAMED_VALUES = {"unlisted": 1000}
"""How many different values the summary has for a kind of fault. All unlisted values are needed for a mapping, of other kinds some examples."""

EXAMPLES = 5
"""How many different values it has for the other kinds."""

SCRATCH = """
CREATE TABLE met (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID;
CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID;
CREATE TABLE faults (kind TEXT, value TEXT, times INTEGER, first INTEGER, lines TEXT, PRIMARY KEY (kind, value)) WITHOUT ROWID;
"""

COUNT_FAULT = """
INSERT INTO faults VALUES (?, ?, 1, ?, ?) ON CONFLICT (kind, value) DO UPDATE SET times = times + 1,
lines = lines || CASE WHEN times < ? THEN ', ' || excluded.lines WHEN times = ? THEN ', …' ELSE '' END
"""


class Scratch:
    """The memory of an import: rows, ids and faults. A temporary SQLite database keeps it on disk, so memory does not grow with the file."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(SCRATCH)
        self._database.execute("BEGIN")

    def times(self, digest: bytes) -> int:
        """Count a row, and return how many equal rows there are so far."""
        self._database.execute("INSERT INTO met VALUES (?, 1) ON CONFLICT (digest) DO UPDATE SET times = times + 1", [digest])
        times: int = self._database.execute("SELECT times FROM met WHERE digest = ?", [digest]).fetchone()[0]
        return times

    def first_line(self, source_id: str, line: int) -> int:
        """Return the first line with this id: `line`, if it is new."""
        self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", [source_id, line])
        first: int = self._database.execute("SELECT line FROM ids WHERE id = ?", [source_id]).fetchone()[0]
        return first

    def add(self, fault: Fault, line: int) -> None:
        """Count a fault, and keep its line number if it is among the first with this value."""
        self._database.execute(COUNT_FAULT, [fault.kind, fault.value, line, str(line), NAMED_LINES, NAMED_LINES])

    def faults(self, kind: str) -> tuple[int, int]:
        """Return the number of faults of a kind, and of their different values."""
        total: tuple[int, int] = self._database.execute("SELECT sum(times), count(*) FROM faults WHERE kind = ?", [kind]).fetchone()
        return total

    def values(self, kind: str, limit: int) -> Iterator[tuple[str, int, str]]:
        """Yield the values of a kind with their counts and lines, the most frequent first."""
        yield from self._database.execute("SELECT value, times, lines FROM faults WHERE kind = ? ORDER BY times DESC, first LIMIT ?", [kind, limit])

    def close(self) -> None:
        """Remove the temporary database."""
        self._database.close()


@dataclass
class Tally:
    """The counts of imported, updated, known and refused rows, and the faults of the refused ones."""

    scratch: Scratch
    faults: Any = None
    read: int = 0
    imported: int = 0
    updated: int = 0
    known: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.kinds: dict[str, Fault] = {}

    def refuse(self, line: int, refused: Refused) -> None:
        """Count a refused row and its faults."""
        self.refused += 1
        for fault in refused.faults:
            self.kinds.setdefault(fault.kind, fault)
            self.scratch.add(fault, line)
            if self.faults:
                self.faults.writerow([line, *fault[1:]])

    def __str__(self) -> str:
        updated = f"{self.updated:,} updated, " if self.updated else ""
        counts = f"{self.read:,} rows read: {self.imported:,} imported, {updated}{self.known:,} already there, {self.refused:,} refused"
        return "\n".join([counts + (":" if self.refused else "."), *(line for fault in self.kinds.values() for line in self._lines(fault))])

    def _lines(self, fault: Fault) -> Iterator[str]:
        """Yield a line for a kind of fault, and one for each of its values."""
        total, different = self.scratch.faults(fault.kind)
        shown = NAMED_VALUES.get(fault.kind.rpartition(" ")[2], EXAMPLES)
        column = f", column {fault.column!r}" if fault.column else ""
        yield f"  {total:,} × {fault.field}{column}: expected {fault.expected}"
        for value, times, lines in self.scratch.values(fault.kind, shown):
            found = repr(Truncator(value).chars(100)) if value else "nothing"
            yield f"    {times:,} × {found} (line{'s' * (times > 1)} {lines})"
        if different > shown:
            yield f"    and {different - shown:,} other values; --faults FILE writes every cell"


class Import:
    """An import of one file, in the caller's transaction."""

    def __init__(self, mapping: Mapping, tally: Tally, *, dry_run: bool, quiet: bool) -> None:
        self.mapping = mapping
        self.tally = tally
        self.dry_run = dry_run
        self.quiet = quiet
        self.spellings = {(model, name): _spellings(model, name) for model, rules in mapping.rules.items() for name, rule in rules.items() if rule.fold}

    def run(self, path: Path) -> None:
        """Import the file batch by batch. Raises Unusable."""
        with closing(rows(path, self.mapping.layout, self.mapping.columns)) as found:
            columns = Columns(next(found).cells)
            positions = self.mapping.positions(columns)
            size = path.stat().st_size if path.is_file() else None  # a pipe has none
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=self.quiet or None) as bar:
                while batch := list(islice(found, BATCH)):
                    self._take(columns, positions, batch)
                    bar.update(batch[-1].position - bar.n)
                    reset_queries()  # in debug, Django keeps every statement in memory

    def _take(self, columns: Columns, positions: dict[str, int], batch: list[Row]) -> None:
        usable: dict[str, Listing] = {}
        for row in batch:
            try:
                record_hash, listing = self._usable(columns, positions, row)
            except Refused as refused:
                self.tally.refuse(row.line, refused)
            else:
                usable[record_hash] = listing
        fresh, changed = _compared(usable)
        if not self.dry_run:
            _write(self.mapping, fresh, changed)
        self.tally.read += len(batch)
        self.tally.imported += len(fresh)
        self.tally.updated += len(changed)
        self.tally.known += len(usable) - len(fresh) - len(changed)

    def _usable(self, columns: Columns, positions: dict[str, int], row: Row) -> tuple[str, Listing]:
        """Return the hash and the listing of a row. Raises Refused."""
        if len(row.cells) != len(columns.names):
            which = "fewer" if len(row.cells) < len(columns.names) else "more"
            raise Refused(Fault(which, "row", "", f"{len(row.cells)} cells", f"{len(columns.names)} cells, one for each column"))
        listing = self._spelled(self.mapping.listing({column: row.cells[position] for column, position in positions.items()}))
        if (source_id := listing.values[Property]["source_id"]) is not None:
            first = self.tally.scratch.first_line(source_id, row.line)
            if first != row.line:
                column = ", ".join(self.mapping.rules[Property]["source_id"].columns)
                raise Refused(Fault("id twice", "property.source_id", column, source_id, "an id that no earlier row has"))
        return self._hash(dict(zip(columns.names, row.cells, strict=True))), listing

    def _hash(self, cells: Record) -> str:
        """Return the hash of a row, which ignores the order of columns. A repeated row gets another hash by its number."""
        digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
        if (times := self.tally.scratch.times(digest.digest())) > 1:
            digest.update(str(times).encode())
        return digest.hexdigest()

    def _spelled(self, listing: Listing) -> Listing:
        """Give names that differ only in case one spelling: that of the database, or otherwise the first in the file."""
        for (model, name), spellings in self.spellings.items():
            if (text := listing.values[model][name]) is not None:
                listing.values[model][name] = spellings.setdefault(text.casefold(), text)
        return listing


def _spellings(model: type[Model], name: str) -> dict[str, str]:
    stored = model._default_manager.exclude(**{name: None}).values_list(name).annotate(first=Min("pk")).order_by("-first")
    return {text.casefold(): text for text, _ in stored}


def _source_id(listing: Listing) -> str | None:
    source_id: str | None = listing.values[Property]["source_id"]
    return source_id


def _compared(usable: dict[str, Listing]) -> tuple[dict[str, Listing], dict[int, tuple[str, Listing]]]:
    """Return the new listings by hash, and the changed ones by the id of their property. A row with a known hash is neither.

    A property that was imported without an id of the source gets it.
    """
    ids = {source_id for listing in usable.values() if (source_id := _source_id(listing)) is not None}
    among = Q(record_hash__in=usable) | Q(source_id__in=ids) if ids else Q(record_hash__in=usable)
    stored = list(Property.objects.filter(among).values_list("pk", "record_hash", "source_id"))
    by_hash = {record_hash: (pk, source_id) for pk, record_hash, source_id in stored}
    by_id = {source_id: pk for pk, _, source_id in stored if source_id is not None}
    fresh, changed = {}, {}
    for record_hash, listing in usable.items():
        wanted = _source_id(listing)
        if record_hash not in by_hash:
            if wanted in by_id:
                changed[by_id[wanted]] = record_hash, listing
            else:
                fresh[record_hash] = listing
        elif by_hash[record_hash][1] is None and wanted is not None and wanted not in by_id:
            changed[by_hash[record_hash][0]] = record_hash, listing
    return fresh, changed


def _write(mapping: Mapping, fresh: dict[str, Listing], changed: dict[int, tuple[str, Listing]]) -> None:
    """Create a property for each new listing, update those of the changed ones, and create missing locations, agents and offices."""
    listings = [*fresh.values(), *(listing for _, listing in changed.values())]
    if not listings:
        return
    offices = _stored(Office, [listing.values[Office] for listing in listings])
    agents = _stored(Agent, [listing.values[Agent] | {"office_id": office} for listing, office in zip(listings, offices, strict=True)])
    locations = _stored(Location, [listing.values[Location] for listing in listings])
    keys = [{"agent_id": agent, "location_id": location} for agent, location in zip(agents, locations, strict=True)]
    homes = Property.objects.bulk_create(
        Property(**listing.values[Property], record_hash=record_hash, **key) for (record_hash, listing), key in zip(fresh.items(), keys, strict=False)
    )
    PropertyImage.objects.bulk_create(
        PropertyImage(**image, property=home) for home, listing in zip(homes, fresh.values(), strict=True) for image in listing.images
    )
    _update(mapping, {pk: (record_hash, listing, key) for (pk, (record_hash, listing)), key in zip(changed.items(), keys[len(fresh) :], strict=True)})


def _update(mapping: Mapping, changed: dict[int, tuple[str, Listing, dict[str, int]]]) -> None:
    """Update the columns that differ, so that pages which do not show them stay warm. A property without a rule for a field keeps its value."""
    given = [name for name, rule in mapping.rules[Property].items() if rule.given and name != "created_at"]  # which never changes
    for pk, home in Property.objects.select_for_update().in_bulk(changed).items():
        record_hash, listing, keys = changed[pk]
        values = {name: listing.values[Property][name] for name in given} | keys
        different = [name for name, value in values.items() if getattr(home, name) != value]
        for name in different:
            setattr(home, name, values[name])
        home.record_hash = record_hash
        home.save(update_fields=["record_hash", *different, *(["updated_at"] if different else [])])
        if mapping.images and list(home.images.values("url", "caption", "position")) != listing.images:
            home.images.all().delete()
            PropertyImage.objects.bulk_create(PropertyImage(**image, property=home) for image in listing.images)


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
        "Import property listings from a CSV file: plain, gzip, a zip with one file, or - for standard input. A mapping (TOML; see docs/importing.md) assigns "
        "columns to fields; `inspect_listings` writes a first one. Each valid row becomes one property, identified by a hash of its cells. Importing a file "
        "twice adds nothing, even with another mapping. If the mapping has source_id, a changed row updates its property. Refused rows are counted, and each "
        "fault is listed with its column, values and lines. Everything happens in one transaction."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the file, the mapping and the options."""
        parser.add_argument("file", type=Path, metavar="FILE", help="listings, .csv, .csv.gz or .zip; - for standard input")
        parser.add_argument("--mapping", type=Path, required=True, metavar="MAPPING", help="mapping of columns to fields, .toml")
        parser.add_argument("--dry-run", action="store_true", help="write nothing, and print what an import would do")
        parser.add_argument("--strict", action="store_true", help="import nothing if any row is refused")
        parser.add_argument("--faults", type=Path, metavar="CSV", help="write every unusable cell to this file: line, field, column, value, expected")

    def handle(self, *, file: Path, mapping: Path, dry_run: bool, strict: bool, faults: Path | None, verbosity: int, **_: Any) -> None:
        """Import, and print the counts. Raises CommandError if the file or the mapping is invalid, and for refused rows with --strict."""
        try:
            with ExitStack() as stack:
                tally = Tally(stack.enter_context(closing(Scratch())), _writer(faults, stack))
                with transaction.atomic():
                    Import(Mapping.load(mapping), tally, dry_run=dry_run, quiet=not verbosity).run(file)
                    if strict and tally.refused:
                        raise CommandError(f"Nothing was imported (--strict), because rows were refused. {tally}")
                if verbosity:
                    self.stdout.write(f"Nothing was written (--dry-run). An import would have this result: {tally}" if dry_run else str(tally))
        except Unusable as error:
            raise CommandError(f"Nothing was imported. {error}") from error
        except DatabaseError as error:
            raise CommandError(f"Nothing was imported. Database error: {error}") from error


def _writer(path: Path | None, stack: ExitStack) -> Any:
    """Return a writer of the file of faults; None without --faults."""
    if path is None:
        return None
    try:
        file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror}.") from error
    writer = csv.writer(file)
    writer.writerow(["line", "field", "column", "value", "expected"])
    return writer
