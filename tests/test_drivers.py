"""Database drivers. Every method of a cursor or connection has its SQL judged, sends none, or is refused, and a new one is refused until it is reviewed."""

import datetime
import inspect
import sqlite3
from contextlib import ExitStack, contextmanager, suppress

import pytest
from django.db import Error, NotSupportedError, OperationalError, connection, connections, transaction
from django.db.backends.postgresql.base import Cursor as PostgreSQLCursor
from django.db.backends.postgresql.base import CursorDebugWrapper as PostgreSQLDebugWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQL
from django.db.backends.postgresql.base import ServerSideCursor
from django.db.backends.postgresql.psycopg_any import BaseTzLoader
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from psycopg import ClientCursor, Cursor, DataError, RawCursor, RawServerCursor, ServerCursor, adapters

from housing.freshness import ours
from housing.freshness.cursor import MethodRefused, mixed
from housing.freshness.postgresql import base as postgresql_backend
from housing.freshness.sqlite3 import base as sqlite3_backend
from housing.freshness.statements import text_of, written_tables

# The methods of the cursor

BACKENDS = {
    "SQLite": (sqlite3_backend, (SQLiteCursorWrapper, sqlite3.Cursor), (CursorWrapper, CursorDebugWrapper)),
    "PostgreSQL": (
        postgresql_backend,
        (PostgreSQLCursor, ServerSideCursor, Cursor, ClientCursor, ServerCursor, RawCursor, RawServerCursor),
        (CursorWrapper, CursorDebugWrapper, PostgreSQLDebugWrapper),
    ),
}
"""Backend → its module, the cursor classes of its driver, and Django's wrappers of them."""


def public_names(*classes):
    """The names of the public methods of these classes."""
    return {name for each in classes for name in dir(each) if not name.startswith("_") and callable(getattr(each, name))}


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend on each stack, because its hooks can be checked without a server."""
    return BACKENDS[request.param]


@pytest.fixture
def a_cursor(backend):
    """A cursor of this backend whose connection records each statement in `judged` and sends none."""

    class Judging(backend[0].DatabaseWrapper):
        judged = []

        @contextmanager
        def statement(self, text, params=None):
            self.judged.append(text)
            raise InterruptedError
            yield

    return mixed(backend[0].Cursor, CursorWrapper)(backend[1][0], Judging({"AUTOCOMMIT": True}))


def test_every_method_of_a_drivers_cursor_is_hooked_allowed_by_name_or_refused(backend, a_cursor):
    """Django's wrapper passes unknown methods on to the driver, private ones too, and any of them might send a write."""
    names = {name for each in backend[1] for name in dir(each) if not name.startswith("__")}

    left = {name for name in names if not hasattr(type(a_cursor), name)} - a_cursor.sends_no_sql
    assert len(left) > 0
    assert {name for name in left if hasattr(a_cursor, name)} == set()
    for name in left:
        with pytest.raises(MethodRefused):
            getattr(a_cursor, name)


def test_every_method_that_sends_sql_has_its_text_judged(backend, a_cursor):
    """This covers the methods of Django's wrappers and those of the drivers."""
    send = {
        "execute": lambda: a_cursor.execute("execute"),
        "executemany": lambda: a_cursor.executemany("executemany", []),
        "callproc": lambda: a_cursor.callproc("nightly"),
        "copy": lambda: a_cursor.copy("copy").__enter__(),
        "stream": lambda: next(a_cursor.stream("stream")),
    }
    theirs = public_names(*backend[1], *backend[2]) & send.keys()
    for name in sorted(theirs):
        with pytest.raises(InterruptedError):
            send[name]()

    assert a_cursor.db.judged == [{"callproc": "CALL procedure()"}.get(name, name) for name in sorted(theirs)]
    assert public_names(*backend[1], *backend[2]) - send.keys() - a_cursor.sends_no_sql - {"executescript", "debug_sql"} <= {"results", "set_result"}


def test_no_allowed_method_takes_a_statement(backend, a_cursor):
    """The exceptions `mogrify()` and `convert_query()` return the text of a statement and send nothing."""
    statement = {"sql", "query", "statement", "script", "sql_script", "operation", "procname"}
    allowed = [(each, name) for each in backend[1] for name in a_cursor.sends_no_sql if callable(getattr(each, name, None))]

    assert {name for each, name in allowed if statement & inspect.signature(getattr(each, name)).parameters.keys()} <= {"mogrify", "convert_query"}
    assert {"fetchone", "fetchmany", "fetchall", "close"} <= {name for _, name in allowed}


def test_a_new_method_of_a_driver_is_refused_until_it_is_reviewed(backend, a_cursor, monkeypatch):
    """`hasattr()` returns False, so code that checks first can use another method."""
    monkeypatch.setattr(backend[1][0], "broadcast", lambda *_: None, raising=False)

    assert not hasattr(a_cursor, "broadcast")
    with pytest.raises(NotSupportedError, match=r"^cursor\.broadcast is refused, because it may execute SQL that the cache does not see\. Use ") as refused:
        a_cursor.broadcast("UPDATE housing_office SET name = 'Renamed'")
    assert f"add its name to sends_no_sql in {backend[0].__name__}." in str(refused.value)
    assert getattr(a_cursor, "broadcast", "none") == "none"


@pytest.mark.only("embedded")
def test_a_cursor_does_not_expose_the_drivers_connection(transactional_db):
    """A write through it would bypass the cache. (On PostgreSQL, Django itself needs it to log a query.)"""
    with pytest.raises(MethodRefused, match=r"cursor\.connection is refused"):
        assert connection.cursor().connection


def test_reading_from_a_cursor_works_as_in_django(transactional_db):
    """Hooks for writes must not change how rows are read."""
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT 1 UNION SELECT 2 ORDER BY 1") is cursor
        assert cursor.description[0][0]
        assert (cursor.fetchone(), cursor.fetchmany(1), cursor.fetchall()) == ((1,), [(2,)], [])
        assert list(cursor.execute("SELECT 3")) == [(3,)]
        assert isinstance(cursor.rowcount, int)
    with pytest.raises(Error):
        cursor.fetchone()


# The methods of the connection

THROUGH_A_CURSOR = {
    *("cursor", "chunked_cursor", "make_cursor", "make_debug_cursor", "copy", "schema_editor", "temporary_connection"),
    *("savepoint", "savepoint_commit", "savepoint_rollback", "clean_savepoints", "set_autocommit", "commit", "rollback", "check_constraints"),
    *("constraint_checks_disabled", "disable_constraint_checking", "enable_constraint_checking", "get_database_version", "pg_version"),
    *("check_database_version_supported", "prepare_database", "run_and_clear_commit_hooks", "on_commit"),
}
"""Public methods of Django's connection that send SQL through `cursor()`, or commit through the engine."""

PAST_THE_CURSOR = {
    *("connect", "ensure_connection", "get_new_connection", "init_connection_state"),
    *("close_if_health_check_failed", "close_if_unusable_or_obsolete", "ensure_timezone", "is_usable"),
}
"""Methods that send settings and health checks directly through the driver."""

EXPOSES = {"create_cursor", "pool", "Database"}
"""Names that give the caller the driver's own cursor, connections or module. Their writes are in test_other_writers.py."""

SEND_NOTHING = {
    *("SchemaEditorClass", "allow_thread_sharing", "check_settings", "client_class", "close", "close_pool", "creation_class", "data_type_check_constraints"),
    *("data_types", "data_types_suffix", "dec_thread_sharing", "display_name", "execute_wrapper", "features_class", "get_autocommit", "get_connection_params"),
    *("get_rollback", "inc_thread_sharing", "introspection_class", "is_in_memory_db", "operators", "ops", "ops_class", "pattern_esc", "pattern_ops", "queries"),
    *("queries_limit", "queries_logged", "set_rollback", "timezone", "timezone_name", "transaction_modes", "tzinfo_factory", "validate_no_atomic_block"),
    *("validate_no_broken_transaction", "validate_thread_sharing", "validation_class", "vendor", "wrap_database_errors"),
}


def test_every_public_name_of_djangos_connection_was_reviewed():
    """If this fails for a new version of Django, find out whether the new name sends SQL past the cursor, and add it to one of the lists."""
    known = THROUGH_A_CURSOR | PAST_THE_CURSOR | EXPOSES | SEND_NOTHING

    assert {name for each in (SQLite, PostgreSQL) for name in dir(each) if not name.startswith("_")} - known == set()


def test_the_connection_sends_no_write_past_the_cursor(transactional_db, monkeypatch):
    """It sends only session settings and health checks. This spec records them in the driver."""
    sent = []

    class Traced(sqlite3.Connection):
        def __init__(self, *how, **options):
            super().__init__(*how, **options)
            self.set_trace_callback(sent.append)

    class TracedCursor(PostgreSQLCursor):
        def execute(self, query, *rest, **options):
            sent.append(text_of(query, connection))
            return super().execute(query, *rest, **options)

    traced = {"sqlite": {"factory": Traced}, "postgresql": {"cursor_factory": TracedCursor}}[connection.vendor]
    connect = type(connections["default"]).get_new_connection
    monkeypatch.setattr(type(connections["default"]), "get_new_connection", lambda self, params: connect(self, params | traced))
    for name in sorted(PAST_THE_CURSOR):
        if name in {"connect", "ensure_connection"}:
            connection.close()
        elif name == "get_new_connection":
            connection.get_new_connection(connection.get_connection_params()).close()
            continue
        getattr(connection, name)()
    connection.close()

    assert {"sqlite": "PRAGMA foreign_keys = ON", "postgresql": "SELECT 1"}[connection.vendor] in sent
    assert {text: written for text in sent if (written := written_tables(text))} == {}


def test_a_procedure_called_with_keywords_is_refused(transactional_db):
    """Neither driver can send them, so the call would lose them."""
    with connection.cursor() as cursor, pytest.raises(NotSupportedError):
        cursor.callproc("a_procedure", kparams={"price": 1})


# Values


TIMES = {
    "whole seconds": "2026-01-01 00:00:00+00",
    "microseconds": "2026-06-30 18:00:00.123456+00",
    "milliseconds": "2026-06-30 18:00:00.12+00",
    "another zone": "2026-01-01 05:45:00+05:45",
    "a zone before there were any": "1880-01-01 00:19:32+00:19:32",
    "before Christ": "0044-03-15 00:00:00+00 BC",
    "after the year 9999": "12026-01-01 00:00:00+00",
    "infinity": "infinity",
}


@pytest.mark.parametrize("kind", TIMES)
def test_a_time_of_postgresql_is_read_as_django_reads_it(kind):
    """The engine reads times in a third of the time that Django's own conversion takes. A time that it cannot read is left to Django's."""

    class Djangos(BaseTzLoader):
        timezone = datetime.UTC

    def read(loader):
        try:
            return repr(loader(adapters.types["timestamptz"].oid, None).load(TIMES[kind].encode()))
        except DataError as error:
            return repr(error)

    assert read(postgresql_backend.Instants) == read(Djangos)


# Snapshots


def transaction_modes():
    """The isolation level of a transaction on this connection, and whether it can write."""
    with transaction.atomic(), connection.cursor() as cursor:
        return [cursor.execute(f"SHOW {name}").fetchone()[0] for name in ("transaction_isolation", "transaction_read_only")]


@pytest.mark.only("real")
@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1/0", "SELECT pg_terminate_backend(pg_backend_pid())"], ids=["", "failed", "lost"])
def test_a_snapshot_leaves_its_isolation_level_on_no_connection(transactional_db, statement):
    """Its BEGIN has the level, without a statement more. The next transaction on this connection can write again."""
    with suppress(Error), ours().snapshot(), connection.cursor() as cursor:
        modes = cursor.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')").fetchone()
        cursor.execute(statement)

    assert modes == ("repeatable read", "on")
    assert transaction_modes() == ["read committed", "off"]


@pytest.mark.only("real")
def test_a_snapshot_on_a_closed_connection_is_an_error_of_the_connection(transactional_db):
    """The client gets 503, and the next request opens another connection."""
    connection.close()  # a new one was checked, so it is not replaced before
    connection.ensure_connection()
    connection.connection.close()

    with pytest.raises(OperationalError):
        ExitStack().enter_context(ours().snapshot())
    connection.close()
