"""Which statements are writes, and to which tables of ours. No SQL parser: what is not known to be harmless is a write."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

from django.core.signals import setting_changed
from django.db.models.signals import class_prepared

from .tracking import other_tables, tables

LONG = 10_000
"""Of texts with fewer characters it is remembered what they are."""

HARMLESS = re.compile(
    r"[\s(]*(SELECT|SHOW|PRAGMA|SET|RESET|BEGIN|START|SAVEPOINT|RELEASE|ROLLBACK\s+TO|DECLARE|FETCH|CLOSE|DEALLOCATE|LISTEN|UNLISTEN|NOTIFY"
    r"|VACUUM|ANALYZE|REINDEX|LOCK|EXPLAIN(?!.*\bANALY[SZ]E\b))\b",
    re.IGNORECASE | re.DOTALL,
)
"""Beginnings of statements that write no row."""

CONTROL = re.compile(r"(BEGIN|SET TRANSACTION)\b")
"""How a snapshot begins, on SQLite and on PostgreSQL: statements that ask nothing and write nothing, and so are no query."""

LEAD = re.compile(r"\A(?:[\s;]|--[^\n]*(?:\n|$)|/\*(?:(?!/\*).)*?\*/)*", re.DOTALL)
"""What may stand before a statement. A comment within a comment, which servers read differently, is left to look like a write."""

SEVERAL = re.compile(r";\s*\S")
"""More than one statement in one text: only the first could be judged by its beginning."""

ENDS_TRANSACTION = re.compile(r"\s*(COMMIT|END|ROLLBACK(?!\s+TO)|ABORT|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)

ENDS_LATER = re.compile(r";\s*(COMMIT|ROLLBACK(?!\s+TO)|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)

TARGET = re.compile(r'\s*(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?)\s+"?(\w+)"?(?!\w*\.)', re.IGNORECASE)
"""The one table that a plain INSERT, UPDATE or DELETE writes."""

SCHEMA = re.compile(r"\s*(CREATE|ALTER|DROP|COMMENT|GRANT|REVOKE)\b", re.IGNORECASE)
WITH = re.compile(r"WITH\b", re.IGNORECASE)
CONCURRENTLY = re.compile(r"\s*(CREATE|DROP)\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\b", re.IGNORECASE)


@cache
def _by_lower_case() -> dict[str, str]:
    return {name.lower(): name for name in tables()}


@cache
def _others_in_lower_case() -> frozenset[str]:
    return frozenset(map(str.lower, other_tables()))


@cache
def _mention() -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(map(re.escape, tables())) + r")\b", re.IGNORECASE)


def bare(sql: str) -> str:
    """A text without the comments and the empty statements that it begins with."""
    return LEAD.sub("", sql)


def ends_transaction(sql: str) -> bool:
    """Whether a text ends the transaction that it is in, or might."""
    return _judged(sql)[0]


def written_tables(sql: str) -> frozenset[str]:
    """The tables of ours that a statement may write: those in its text, and all of them where its target is not known.

    A write through a function (`SELECT f()`) or through somebody else's trigger is not seen.
    """
    return _judged(sql)[1]


def _judged(sql: str) -> tuple[bool, frozenset[str]]:
    return _remembered(sql) if len(sql) < LONG else _judge(sql)


def _judge(sql: str) -> tuple[bool, frozenset[str]]:
    return bool(ENDS_TRANSACTION.match(bare(sql)) or ENDS_LATER.search(sql)), _written_tables(bare(sql))


_remembered = lru_cache(maxsize=1024)(_judge)
"""Django sends the same texts again and again, with other parameters. Long ones, which name many rows, are judged each time."""


def _written_tables(sql: str) -> frozenset[str]:
    several = SEVERAL.search(sql)
    if CONCURRENTLY.match(sql) or (HARMLESS.match(sql) and not several):
        return frozenset()
    target = TARGET.match(sql)
    if target and (name := target[1].lower()) not in _by_lower_case() and name not in _others_in_lower_case():
        return frozenset(tables())  # a view, say: what it stands for is in no text
    if WITH.match(sql):
        return frozenset(tables())
    if named := frozenset(_by_lower_case()[name.lower()] for name in _mention().findall(sql)):
        return named if all(tables()[name].managed for name in named) else frozenset(tables())
    if (target or SCHEMA.match(sql)) and not several:
        return frozenset()
    return frozenset(tables())


def may_write(script: str) -> bool:
    """Whether a text of many statements may write a table of ours. A comment that holds a semicolon looks like something unknown."""
    return any(written_tables(statement) for statement in script.split(";") if statement.strip())


def forget(**_: Any) -> None:
    """Look again which tables a text names: there may be others."""
    for each in (_by_lower_case, _others_in_lower_case, _mention):
        each.cache_clear()
    _remembered.cache_clear()


class_prepared.connect(forget)
setting_changed.connect(forget)
