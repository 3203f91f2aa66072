"""Scopes through a join: the value is in the row to which a reference leads, such as the country of an order's customer.

A write to an order reads the country in its own statement. Before it commits, another transaction may move the customer to another country and commit first.
Then the page of the other country can be filled without the order, and the write has the tag of the old country.

So a write trusts the value that it has read by the rule for entries: no close and no lease of the customer's country is at or after an instant that was known
before the transaction began. If there is one, the write has the tag `t:>`, which stands for all scopes through a join. A lease lists what it trusts. A later
lease that breaks this trust adds the tag to it, because its own COMMIT may come first. No lock is taken, and no statement or round trip is added.

PostgreSQL may keep a *copy* of the country in the order's own row: a foreign key of two columns, `(customer_id, country)`, lets no COMMIT leave another value
there than the customer's. The engine finds such keys itself. The write then returns the copy, which needs no subquery and no trust: while the write is
not committed, the customer can move only before it or after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .tracking import TRUST, Joined, Table, targets

EVERYTHING = "*"
"""The tag of a write of which nothing is known."""


def trusting(table: Table, joined: Joined, key: str) -> str:
    """Return the condition of a write to this table that has read a column of the row with this key."""
    return f"{TRUST}{table.unjoined}|{joined.table}|{key}|"


def divided(tags: Iterable[str], *, is_known: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tags, and the conditions that are among them, each in order. If no instant is known at which they held, they are replaced by their tags."""
    found = set(tags)
    conditions = {tag for tag in found if tag.startswith(TRUST)}
    plain = found - conditions
    if not is_known:
        plain, conditions = plain | {condition.removeprefix(TRUST).partition("|")[0] for condition in conditions}, set()
    return tuple(sorted(plain)), tuple(sorted(conditions))


def watched(conditions: Iterable[str]) -> set[str]:
    """Return the tags of the writes that break these conditions: the row is deleted or leaves a scope, or nobody knows which rows do."""
    found: set[str] = set()
    for condition in conditions:
        _, name, key, _ = condition.removeprefix(TRUST).split("|")
        row = f"{name}-{key}"
        found.update((row, f"{name}:*", f"{name}:?", *(f"{row}.{column}" for column in targets().get(name, ()))))
    return found


def broken(text: str) -> set[str]:
    """Return the texts that conditions contain which a write with these tags breaks, one tag per line."""
    if "-" not in text and "*" not in text and ":?" not in text:  # most writes need no more
        return set()
    names = [name for name in targets() if f"{name}-" in text or f"{name}:*" in text or f"{name}:?" in text]
    tags = text.split("\n")
    if EVERYTHING in tags:
        return {TRUST}
    found: set[str] = set()
    for name in names:
        if f"{name}:*" in tags or f"{name}:?" in tags:
            found.add(f"|{name}|")
        for tag in [tag for tag in tags if tag.startswith(f"{name}-")]:
            parts = tag.removeprefix(f"{name}-").split(".")  # a key may have dots, too
            found.update(f"|{name}|{'.'.join(parts[:count])}|" for count in range(1, len(parts) + 1))
    return found
