"""Which statements are writes, and to which tables of ours. No SQL parser: what is not known to be harmless is a write."""

from __future__ import annotations

import re
from functools import cache

from django.apps import apps
from django.db.migrations.recorder import MigrationRecorder

APP = "housing"

HARMLESS = re.compile(
    r"[\s(]*(SELECT|SHOW|PRAGMA|SET|RESET|BEGIN|START|SAVEPOINT|RELEASE|ROLLBACK\s+TO|DECLARE|FETCH|CLOSE|DEALLOCATE|LISTEN|UNLISTEN|NOTIFY"
    r"|VACUUM|ANALYZE|REINDEX|LOCK|EXPLAIN(?!.*\bANALYZE\b))\b",
    re.IGNORECASE | re.DOTALL,
)
"""Beginnings of statements that write no row."""

CONTROL = re.compile(r"\s*(BEGIN|START\s+TRANSACTION|SET\s+TRANSACTION|SAVEPOINT|RELEASE|ROLLBACK|COMMIT)\b", re.IGNORECASE)
"""Transaction control: statements that ask nothing and write nothing, and so are no query."""

SEVERAL = re.compile(r";\s*\S")
"""More than one statement in one text: only the first could be judged by its beginning."""

ENDS_TRANSACTION = re.compile(r"\s*(COMMIT|END|ROLLBACK(?!\s+TO)|ABORT|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)

TARGET = re.compile(r'\s*(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?)\s+"?(\w+)"?(?!\w*\.)', re.IGNORECASE)
"""The one table that a plain INSERT, UPDATE or DELETE writes."""

SCHEMA = re.compile(r"\s*(CREATE|ALTER|DROP|COMMENT|GRANT|REVOKE)\b", re.IGNORECASE)
CONCURRENTLY = re.compile(r"\s*(CREATE|DROP)\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\b", re.IGNORECASE)

DELETES_ROWS = re.compile(r'DELETE FROM "(\w+)" WHERE "\1"\."id" IN \((?:%s(?:, )?)+\)')
"""What Django's deletion collector sends, once it has announced each row with `pre_delete`."""


@cache
def our_tables() -> dict[str, str]:
    """table → the tag that names all of its rows, for every model of ours."""
    return {model._meta.db_table: f"{model.tag}:*" for model in apps.get_app_config(APP).get_models() if hasattr(model, "tag")}


@cache
def other_tables() -> frozenset[str]:
    """The tables of everybody else's models: writing them is no business of ours."""
    models = apps.get_models(include_auto_created=True)
    return frozenset({model._meta.db_table for model in models} | {MigrationRecorder.Migration._meta.db_table}) - our_tables().keys()


@cache
def _mention() -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(map(re.escape, our_tables())) + r")\b", re.IGNORECASE)


def written_tables(sql: str) -> frozenset[str]:
    """The tables of ours that a statement may write: those in its text, and all of them where its target is not known.

    A write through a function (`SELECT f()`) or through somebody else's trigger is not seen.
    """
    if HARMLESS.match(sql) and not SEVERAL.search(sql):
        return frozenset()
    if CONCURRENTLY.match(sql):
        return frozenset()
    if named := frozenset(name.lower() for name in _mention().findall(sql)):
        return named
    target = TARGET.match(sql)
    if target and target[1] in other_tables() and not SEVERAL.search(sql):
        return frozenset()
    if SCHEMA.match(sql) and not SEVERAL.search(sql):
        return frozenset()
    return frozenset(our_tables())


def tables_in_script(script: str) -> frozenset[str]:
    """The tables of ours that a text of many statements may write: all that it mentions, whatever with."""
    mentioned = frozenset(name.lower() for name in _mention().findall(script))
    return mentioned.union(*(written_tables(statement) for statement in script.split(";") if statement.strip()))
