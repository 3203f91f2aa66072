"""The outbox: a table with the tags of committed writes that the journal does not know.

A row is written in the transaction of the write, so it is committed if and only if the write is. Two kinds of writers leave one: a transaction of this
application that could not open its lease, and, on PostgreSQL, a trigger for every write that did not come through this application.

The pattern is the transactional outbox (Richardson, "Microservices Patterns", 2018, section 3.2.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .fingerprint import version

LIMIT = 10_000
"""How many rows are read at once. If there are more, everything becomes stale, so the rest only needs to be deleted."""

EVERYTHING = "*"
"""The tag of all entries."""

Row = tuple[int, str]
"""An id, and tags separated by newlines. `|version:…` among them is the version of the writer's code, if it was this application."""


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


def tags_of(rows: Sequence[Row]) -> set[str]:
    """Return the tags of these rows; `EVERYTHING` alone if there may be other rows."""
    found = {tag for _, tags in rows for tag in tags.split("\n")}
    return {EVERYTHING} if len(rows) == LIMIT or EVERYTHING in found else found


def delete(connection: Any, rows: Sequence[Row]) -> None:
    """Delete exactly these rows. Others may have been committed after they were read."""
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM freshness_outbox WHERE id IN ({', '.join(str(int(row)) for row, _ in rows)})")  # noqa: S608  # they are integers
