"""Triggers that write the tags of other programs' writes to the outbox.

Another program is whatever is not a statement of this application: `psql`, another service, a function or a trigger of the database, a cascade, the raw
driver. A statement of this application begins with a *mark*, a comment for which the triggers do nothing. It has the session's application_name, so that it is
worthless in a statement that is copied from a log into `psql`, and the tables whose tags the statement has.

`outbox.sql` has the function. `migrate` installs the triggers, and `check --database` finds those that are missing.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from hashlib import md5
from pathlib import Path
from typing import Any, NamedTuple

from django.apps import apps
from django.db import transaction
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from ..tracking import MANY_ROWS, Table, tables, until_the_models_change

logger = logging.getLogger(__name__)

UNSAFE = "[*/%]"
"""Characters of an application_name that would end the comment, or be taken for a parameter."""

UNSAFE_IN_TABLES = "[ ,*/%]"
"""The same in the name of a table, where a space or a comma would begin another word."""

_FUNCTION = Path(__file__).with_name("outbox.sql").read_text(encoding="utf-8").replace("@MANY_ROWS@", str(MANY_ROWS))
FUNCTION = _FUNCTION.replace("@UNSAFE@", UNSAFE).replace("@UNSAFE_IN_TABLES@", UNSAFE_IN_TABLES)

MARK = re.compile(r"\A/\* freshness [^*]* \*/ ")

FOREIGN = """
pg_catalog.pg_trigger_depth() > 0
OR pg_catalog.starts_with(pg_catalog.current_query(), '/* freshness ' || pg_catalog.current_setting('application_name') || %s) IS NOT TRUE
"""
"""Whether a statement may be another program's: it does not begin with the mark for this table alone. It is the condition of the triggers, which costs less
than a call of their function. The server parses it for each statement, so it is short: the function recognizes the other marks. A statement whose text the
server does not know, as in some background workers, is another program's. A trigger of the database that a statement of this application fires is not at the
top level when it writes."""

TRANSITIONS = {
    "INSERT": "REFERENCING NEW TABLE AS freshness_new",
    "UPDATE": "REFERENCING OLD TABLE AS freshness_old NEW TABLE AS freshness_new",
    "DELETE": "REFERENCING OLD TABLE AS freshness_old",
    "TRUNCATE": "",
}
"""Event → its rows, which the function reads. With rows, each event needs a trigger of its own."""

# The mark


def mark(application_name: bytes | None, names: frozenset[str]) -> str:
    """Return the beginning of a statement that has tagged these tables; an empty text if there are none."""
    return _mark(application_name or b"", names) if names else ""


@lru_cache
def _mark(application_name: bytes, names: frozenset[str]) -> str:
    tables = ",".join(re.sub(UNSAFE_IN_TABLES, "_", name) for name in sorted(names))
    return f"/* freshness {re.sub(UNSAFE, '_', str(application_name, 'utf-8', 'replace'))} {tables} */ "


def unmarked(statement: str) -> str:
    """Return a statement without its mark."""
    return MARK.sub("", statement)


def after_mark(statement: bytes, more: bytes) -> bytes:
    """Return a statement with more text after its mark, or at its beginning if it has none."""
    end = statement.index(b"*/ ") + 3 if statement.startswith(b"/* freshness ") else 0
    return statement[:end] + more + statement[end:]


def _hash(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()[:8]


# The triggers


class Trigger(NamedTuple):
    """A trigger. Its name has a hash of its definition, so it shows whether it is outdated."""

    table: str
    name: str
    definition: str

    @property
    def statements(self) -> tuple[str, str]:
        """The statements that create it. ENABLE ALWAYS lets it fire under `session_replication_role = replica`, too."""
        return f"CREATE OR REPLACE TRIGGER {self.name} {self.definition}", f"ALTER TABLE {self.table} ENABLE ALWAYS TRIGGER {self.name}"


EXISTING = """
SELECT t.tgrelid::regclass::text, t.tgname, t.tgenabled FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE p.proname = 'freshness_outbox' AND p.pronamespace = %s::regnamespace AND t.tgparentid = 0
"""

TABLES = "SELECT name, oid::regclass::text FROM unnest(%s::text[]) name JOIN pg_class ON oid = to_regclass(name) WHERE relkind IN ('r', 'p')"


def install(connection: Any) -> None:
    """Create the triggers of every tracked table of this database that are missing or outdated, and drop those of other tables.

    The statements write no row, so they are sent by the driver's own connection: pages stay warm, and Redis need not be reachable. A table of another owner is
    left alone, with a warning.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors:
        execute = connection.connection.execute
        if (schema := _schema(execute)) is None:
            execute("DROP FUNCTION IF EXISTS freshness_outbox() CASCADE")  # the migration was reversed
            return
        wanted, existing = list(_wanted(connection, schema)), _existing(execute, schema)
        if not _is_current(execute, schema):
            execute(FUNCTION.replace("@SCHEMA@", schema))
        for trigger in wanted:
            if existing.pop((trigger.table, trigger.name), None) != "A":
                _create(connection, trigger)
        for table, name in existing:
            execute(f"DROP TRIGGER {name} ON {table}")


def _create(connection: Any, trigger: Trigger) -> None:
    try:
        with transaction.atomic(using=connection.alias):  # one trigger at a time, because nobody can write its table meanwhile
            for statement in trigger.statements:
                connection.connection.execute(statement)
    except InsufficientPrivilege as error:
        logger.warning("Writes by other programs to %s are not seen: %s", trigger.table, " ".join(str(error).split()))


def unwatched(connection: Any) -> list[str]:
    """Return the tracked tables with a trigger that is missing, disabled or outdated. Before the first `migrate` there are none."""
    connection.ensure_connection()
    with connection.wrap_database_errors:
        execute = connection.connection.execute
        if (schema := _schema(execute)) is None:
            return []
        existing, is_current = _existing(execute, schema), _is_current(execute, schema)
        return sorted({each.table for each in _wanted(connection, schema) if not is_current or existing.get((each.table, each.name)) != "A"})


def _schema(execute: Any) -> str | None:
    """Return the schema of the outbox, quoted if necessary; None if there is no outbox."""
    found = execute("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('freshness_outbox')").fetchone()
    return found and str(found[0])


def _existing(execute: Any, schema: str) -> dict[tuple[str, str], str]:
    """Return (table, trigger) → when it fires: `A` for always."""
    return {(table, name): fires for table, name, fires in execute(EXISTING, [schema])}


def _is_current(execute: Any, schema: str) -> bool:
    """Whether the function is the one in `outbox.sql`."""
    found = execute("SELECT prosrc FROM pg_proc WHERE proname = 'freshness_outbox' AND pronamespace = %s::regnamespace", [schema]).fetchall()
    return bool(found == [(FUNCTION.replace("@SCHEMA@", schema).split("$$")[1],)])


def _wanted(connection: Any, schema: str) -> Iterator[Trigger]:
    """Yield the triggers of each tracked table in this database. A view has none, because the tables that it shows have them."""
    tracked = {connection.ops.quote_name(table.name): table for table in tables().values()}
    for quoted, table in connection.connection.execute(TABLES, [list(tracked)]).fetchall():
        yield from _triggers_of(connection, schema, table, tracked[quoted])


def _triggers_of(connection: Any, schema: str, table: str, tracked: Table) -> Iterator[Trigger]:
    arguments = (*_arguments_of(tracked), _form_of(tracked))
    end = f" {re.sub(UNSAFE_IN_TABLES, '_', tracked.name)} */"
    quoted = [sql.Literal(text).as_string(connection.connection).strip() for text in (end, *arguments)]
    for event, rows in TRANSITIONS.items():
        condition, call = FOREIGN % quoted[0], f"{schema}.freshness_outbox({', '.join(quoted[1:])})"
        definition = f"AFTER {event} ON {table} {rows} FOR EACH STATEMENT WHEN ({condition}) EXECUTE FUNCTION {call}"
        yield Trigger(table, f"freshness_{event.lower()}_{_hash(definition)}", definition)


@until_the_models_change
@cache
def forms() -> frozenset[str]:
    """Return the names of the forms of tags that this version's triggers write. A row of another form is of another version, and cannot be read."""
    return frozenset(map(_form_of, tables().values()))


def _form_of(tracked: Table) -> str:
    return _hash("\n".join((FUNCTION, *_arguments_of(tracked))))


def _arguments_of(tracked: Table) -> tuple[str, str, str, str]:
    return tracked.name, tracked.pk or "", json.dumps(sorted(tracked.scopes)), json.dumps(sorted(_columns_of(tracked.name)))


def _columns_of(table: str) -> Iterable[str]:
    """Return the columns that a model has for this table."""
    models = (model for model in apps.get_models(include_auto_created=True) if model._meta.db_table == table)
    return {str(field.column) for model in models for field in model._meta.local_concrete_fields}
