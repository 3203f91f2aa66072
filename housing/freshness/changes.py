"""The rows that an UPDATE, a DELETE or an upsert changes: what each held before and what it holds afterwards.

Databases and change data capture call the two the old and the new image of a row. The difference decides the tags of the write, so a save of every column
invalidates only by those that it changed. Values are compared as the database stores them, never as Python converts them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import compress
from typing import Any, NamedTuple

from .joined import trusting
from .tracking import MANY_ROWS, Joined, Table

Values = Sequence[Any]
"""The values of a row as the driver returns them, the primary key first."""


class Image(NamedTuple):
    """A row before and after a statement. A created row has no values before (an empty sequence), and a deleted one has none afterwards (None)."""

    before: Values
    after: Values | None


class Copied(NamedTuple):
    """A copy of a column that a foreign key of two columns keeps equal to it (see joined.py)."""

    name: str
    reference: str
    table: str
    key: str
    column: str
    copy: str
    """The column of the referring table that holds the copy."""


class Lookup(NamedTuple):
    """A value of the row to which a reference leads. Names are quoted."""

    joined: Joined
    is_copied: bool
    """Whether the database keeps a copy of it in the own row (see joined.py)."""
    source: str
    """The column of the own row from which it is found: the copy if the database keeps one, otherwise the reference."""
    table: str
    key: str
    column: str

    def of(self, source: str) -> str:
        """Return an expression for it, given one for its source."""
        if self.is_copied:
            return source
        return f"(SELECT freshness_joined.{self.column} FROM {self.table} freshness_joined WHERE freshness_joined.{self.key} = {source})"  # noqa: S608  # quoted names


class Statement(NamedTuple):
    """An UPDATE or a DELETE, with everything that a database needs to return its images. Names are quoted."""

    sql: str
    params: tuple[Any, ...]
    where: str
    where_params: tuple[Any, ...]
    table: str
    columns: tuple[str, ...]
    """The columns of an image, the primary key first."""
    lookups: tuple[Lookup, ...]
    """Values of the rows to which the row refers afterwards. An image of an UPDATE has them after its columns."""
    is_bounded: bool
    """Whether its condition names so few rows that all images may be returned."""
    deletes: bool
    old_is_known: bool = False
    """Whether only the new values are needed."""

    @property
    def condition(self) -> str:
        """The text of its WHERE; empty if it has none."""
        return f" WHERE {self.where}" if self.where else ""

    @property
    def without_condition(self) -> str:
        """The text before its WHERE, with which Django ends it."""
        assert self.sql.endswith(self.condition)
        return self.sql.removesuffix(self.condition)


class Upsert(NamedTuple):
    """An INSERT that updates or ignores the rows with which it conflicts, and everything that a database needs to return its images. Names are quoted."""

    sql: str
    """The text until the end of ON CONFLICT."""
    params: tuple[Any, ...]
    table: str
    columns: tuple[str, ...]
    """The columns of an image, the primary key first."""
    lookups: tuple[Lookup, ...]
    """Values of the rows to which the row refers afterwards. The values afterwards have them after their columns."""
    returned: tuple[str, ...]
    """The columns that it returns to Django."""
    updates: bool
    """Whether it updates the rows with which it conflicts."""

    def returning(self, *images: str) -> str:
        """Return the list of a RETURNING clause: these expressions for the images, and the columns for Django."""
        return ", ".join([*images, *[f"{self.table}.{column}" for column in self.returned]])


def paired(before: Collection[Values], after: Collection[Values]) -> list[Image] | None:
    """Pair the values of each row by its key. None if they are not the same rows."""
    found = {row[0]: row for row in after}
    if len(before) != len(after) or any(row[0] not in found for row in before):
        return None
    return [Image(row, found[row[0]]) for row in before]


def tags_of(table: Table, columns: Sequence[str], lookups: Sequence[Lookup], images: Sequence[Image]) -> tuple[set[str], set[str]]:
    """Return the tags of an UPDATE with these images: its rows, the columns that differ, and the scopes that a row left or entered; and the tags of the
    columns that differ within the scopes in which a row stays.
    """
    assert table.pk_text
    tags, within = {table.name}, set[str]()
    scopes = [(columns.index(column), column, text) for column, text in table.scopes.items()]
    for before, after in images:
        assert after is not None
        key = table.pk_text(before[0])
        tags.add(f"{table.name}:{key}")
        differs = [old != new or type(old) is not type(new) for old, new in zip(before, after, strict=False)]
        changed = [*compress(columns, differs), *table.generated]
        for column in changed:
            tags.add(f"{table.name}.{column}")
        for place, column, text in scopes:
            old, new, scope = before[place], after[place], f"{table.name}.{column}="
            if differs[place]:
                if old is not None:
                    tags.update((f"{table.name}-{key}.{column}", f"{scope}{text(old)}-"))
                if new is not None:
                    tags.add(f"{scope}{text(new)}")
            elif old is not None:
                inside = f"{scope}{text(old)}."
                for each in changed:
                    within.add(inside + each)
        within.update(tags_through_joins(table, columns, lookups, after, changed))
    return tags, within


def tags_of_created(table: Table, columns: Sequence[str], lookups: Sequence[Lookup], rows: Sequence[Values]) -> tuple[set[str], set[str]]:
    """Return the tags of created rows with these values: the scopes that they enter; and the tags of those that they enter through joins."""
    tags, through_joins = {table.name, f"{table.name}:+"}, set[str]()
    for row in rows:
        values = dict(zip(columns, row, strict=False))
        tags.update([f"{table.name}.{column}={text(values[column])}+" for column, text in table.scopes.items() if values[column] is not None])
        through_joins.update(tags_through_joins(table, columns, lookups, row, table.references, sign="+"))
    return tags, through_joins


def tags_through_joins(table: Table, columns: Sequence[str], lookups: Sequence[Lookup], after: Values, changed: Collection[str], sign: str = "") -> set[str]:
    """Return the tags of a row in its scopes through joins if these columns of it changed, and the conditions under which these are its scopes.

    `sign` ends the tag of a scope that the row enters: `+` if it is created.
    """
    found: set[str] = set()
    for place, (joined, is_copied, *_) in enumerate(lookups if changed else (), len(columns)):
        reference, value = after[columns.index(joined.reference)], after[place]
        if reference is None:
            continue
        if value is None:
            found.add(table.unjoined)
            continue
        scope = f"{table.name}.{joined.reference}>{joined.column}={joined.text(value)}"
        found.update([f"{scope}{sign}"] if joined.reference in changed else [f"{scope}.{each}" for each in changed])
        if not is_copied:
            found.add(trusting(table, joined, joined.key_text(reference)))
    return found


def limited(count: int, images: list[Image] | None) -> tuple[int, list[Image] | None]:
    """Return the number of rows, and their images unless there are more than `MANY_ROWS`."""
    return count, images if count <= MANY_ROWS else None
