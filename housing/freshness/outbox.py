"""The outbox: a table with the tags of committed writes that the journal does not know.

A row is written in the transaction of the write, so it is committed if and only if the write is. Two kinds of writers leave one: a transaction of this
application that could not open its lease, and, on PostgreSQL, a trigger for every write that did not come through this application.

The pattern is the transactional outbox (Richardson, "Microservices Patterns", 2018, section 3.2.6).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .fingerprint import version

LIMIT = 10_000
"""How many rows are read at once. If there are more, everything becomes stale, so the rest only needs to be deleted."""

EVERYTHING = "*"
"""The tag of all entries."""

Row = tuple[int, str]
"""An id, and tags separated by newlines. Among them is `|version:…`, the version of the writer's code, or `|trigger:…`, the form of the trigger's tags."""


def write(connection: Any, tags: Iterable[str]) -> None:
    """Write a row in the transaction of this connection. Raises DatabaseError if it cannot be written."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO freshness_outbox (tags) VALUES (%s)", ["\n".join(sorted((*tags, f"|version:{version()}")))])


def read(connection: Any) -> list[Row]:
    """Return the committed rows, at most `LIMIT` of them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, tags FROM freshness_outbox LIMIT %s", [LIMIT])
        rows: list[Row] = cursor.fetchall()
    return rows


def count(connection: Any) -> int:
    """Return the number of committed rows. Raises DatabaseError if there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM freshness_outbox")
        return int(cursor.fetchone()[0])


def tags_of(rows: Sequence[Row], forms: Collection[str]) -> set[str]:
    """Return the tags of these rows; `EVERYTHING` alone if there may be other rows, or if the triggers of a row do not write one of these forms of tags.

    A trigger's row counts as written by this version, which knows its tags. So the entries of all other versions become stale.
    """
    read = {f"|trigger:{form}": f"|version:{version()}" for form in forms}
    found = set[str]()
    for _, tags in rows:
        own = {read.get(tag, tag) for tag in tags.split("\n")}
        found |= own if any(tag.startswith("|version:") for tag in own) else {EVERYTHING}
    return {EVERYTHING} if len(rows) == LIMIT or EVERYTHING in found else found


def delete(connection: Any, rows: Sequence[Row]) -> None:
    """Delete exactly these rows. Others may have been committed after they were read."""
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM freshness_outbox WHERE id IN ({', '.join(str(int(row)) for row, _ in rows)})")  # noqa: S608  # they are integers
