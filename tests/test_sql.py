"""Every way to send SQL. Every statement passes through one place, where a write waits for its lease. Any other way is refused."""

import sys
from contextlib import contextmanager, nullcontext

import pytest
from django.db import DatabaseError, NotSupportedError, connection, connections, transaction
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from psycopg.sql import SQL, Identifier, Literal, Placeholder

from housing.freshness import outbox
from housing.freshness.postgresql import base as postgresql_backend
from housing.freshness.statements import text_of
from housing.models import Office, Property
from tests.fixtures.rows import execute

RENAME = "UPDATE housing_office SET name = 'Renamed'"


# Every way to send a write


def through_a_wrapper(send):
    """Replace a harmless statement with a write by one of Django's execute wrappers."""
    harmless = "UPDATE auth_user SET email = ''"
    with connection.execute_wrapper(lambda execute, sql, *rest: execute(RENAME if sql == harmless else sql, *rest)):
        send(harmless)


def through_a_copy(text):
    """Execute on `connection.copy()`, which has the same alias."""
    copied = connection.copy()
    try:
        with copied.cursor() as cursor:
            cursor.execute(text)
    finally:
        copied.close()


def debugged(text):
    """Execute with the cursor that Django uses with DEBUG, and when queries are captured."""
    connection.force_debug_cursor = True
    try:
        execute(text)
    finally:
        connection.force_debug_cursor = False


def composed(text):
    """The same statement as psycopg's Composed."""
    head, _, name = text.rpartition("'Renamed'")
    return SQL("{} {}{}").format(SQL(head), Literal("Renamed"), SQL(name))


def streamed(query, *, first_only=False, **options):
    """Stream the rows of a statement, or only the first of them."""
    rows = connection.cursor().stream(query, **options)
    found = [next(rows)] if first_only else list(rows)
    rows.close()
    assert found


def prepared():
    """PREPARE the statement, then EXECUTE it by a name that does not show the table."""
    execute(f"PREPARE renaming AS {RENAME}")
    try:
        execute("EXECUTE renaming")
    finally:
        execute("DEALLOCATE renaming")


WAYS = {
    "execute()": lambda: execute(RENAME),
    "executemany()": lambda: connection.cursor().executemany("UPDATE housing_office SET name = %s", [("Other",), ("Renamed",)]),
    "the cursor that execute() returns": lambda: connection.cursor().execute("SELECT 1").execute(RENAME),
    "an execute wrapper": lambda: through_a_wrapper(execute),
    "an execute wrapper of executemany()": lambda: through_a_wrapper(lambda text: connection.cursor().executemany(text, [()])),
    "a debug cursor": lambda: debugged(RENAME),
}
"""Name of a way to rename every office → a function that does it."""

WAYS_OF_ONE_SERVER = {
    "sqlite": {
        "the cursor that executemany() returns": lambda: connection.cursor().executemany("UPDATE auth_user SET email = ''", [()]).execute(RENAME),
        "REPLACE": lambda: execute("REPLACE INTO housing_office (id, name, city) SELECT id, 'Renamed', city FROM housing_office"),
        "UPDATE OR REPLACE": lambda: execute("UPDATE OR REPLACE housing_office SET name = 'Renamed'"),
    },
    "postgresql": {
        "bytes": lambda: execute(RENAME.encode()),
        "psycopg's SQL": lambda: execute(SQL(RENAME)),
        "psycopg's Composed": lambda: execute(composed(RENAME)),
        "a debug cursor for a Composed": lambda: debugged(composed(RENAME)),
        "executemany() of bytes": lambda: connection.cursor().executemany(b"UPDATE housing_office SET name = %s", [("Renamed",)]),
        "executemany() of a Composed": lambda: connection.cursor().executemany(composed(RENAME), [()]),
        "callproc()": lambda: connection.cursor().callproc("legacy_function"),
        "stream()": lambda: streamed(f"{RENAME} RETURNING id"),
        "stream() in chunks": lambda: streamed(f"{RENAME} RETURNING id", size=2),
        "stream() of bytes": lambda: streamed(f"{RENAME} RETURNING id".encode()),
        "stream() of a Composed": lambda: streamed(composed(f"{RENAME} RETURNING id")),
        "stream() of a CTE": lambda: streamed("WITH x AS (UPDATE housing_office SET name = 'Renamed' RETURNING id) SELECT id FROM x"),
        "stream() of which only one row is read": lambda: streamed(f"{RENAME} RETURNING id", first_only=True),
        "PREPARE and EXECUTE": prepared,
        "MERGE": lambda: execute("MERGE INTO housing_office o USING housing_office n ON o.id = n.id WHEN MATCHED THEN UPDATE SET name = 'Renamed'"),
        "a view, merged from a tracked table": lambda: (
            execute("MERGE INTO legacy_view o USING housing_agent a ON o.id = a.office_id WHEN MATCHED THEN UPDATE SET name = 'Renamed'")
            if connection.pg_version >= 170000
            else execute("UPDATE legacy_view SET name = 'Renamed' WHERE id IN (SELECT office_id FROM housing_agent)")
        ),
        "CALL with the name of another table": lambda: execute("CALL legacy_procedure('housing_agent')"),
        "DO with the name of another table": lambda: execute("DO $$ BEGIN PERFORM 'housing_agent'; CALL legacy_procedure(''); END $$"),
        "a CTE before an INSERT into another table": lambda: execute(
            "WITH x AS (UPDATE legacy_view SET name = 'Renamed' RETURNING id) "
            "INSERT INTO django_content_type (app_label, model) SELECT 'other', id FROM x ON CONFLICT DO NOTHING"
        ),
        "EXPLAIN ANALYZE of a view": lambda: execute("EXPLAIN (COSTS false, ANALYZE) UPDATE legacy_view SET name = 'Renamed' FROM housing_agent"),
        "several statements in one text": lambda: execute("SELECT 'housing_agent'; CALL legacy_procedure('housing_agent')"),
        "a line that ends with CR": lambda: execute(f"-- nightly\r{RENAME};--\nSELECT 1"),
    },
}
"""Vendor of the database → ways that only this server has."""

SETUP = {
    "sqlite": [],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION legacy_function() RETURNS void LANGUAGE sql AS 'UPDATE housing_office SET name = ''Renamed'''",
        "CREATE OR REPLACE PROCEDURE legacy_procedure(text) LANGUAGE sql AS 'UPDATE housing_office SET name = ''Renamed'''",
        "CREATE VIEW legacy_view AS SELECT * FROM housing_office",
    ],
}
"""Vendor of the database → statements that create a function, a procedure and a view, if the server has them."""


@pytest.fixture
def legacy_objects(transactional_db):
    """A function, a procedure and a view that write offices, if the server has them."""
    for statement in SETUP[connection.vendor]:
        execute(statement)
    yield
    if connection.vendor == "postgresql":
        execute("DROP VIEW legacy_view")


@pytest.fixture
def every_way(legacy_objects, twenty_properties, read):
    """`every_way(carry_out)`: for each way, the name of the office in the next read, and its Cache-Status."""

    def outcome(write, carry_out):
        Office.objects.update(name="Before")
        read("cached")
        carry_out(write)
        after = read("cached")
        return after.rows[0]["agent"]["office"]["name"], after.came_from

    return lambda carry_out: {way: outcome(write, carry_out) for way, write in (WAYS | WAYS_OF_ONE_SERVER[connection.vendor]).items()}


@contextmanager
def rolled_back():
    """Roll back what the body wrote."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("within", "outcome"),
    [(nullcontext, ("Renamed", "fwd=stale; stored")), (transaction.atomic, ("Renamed", "fwd=stale; stored")), (rolled_back, ("Before", "hit"))],
    ids=["in autocommit", "in a transaction", "rolled back"],
)
def test_every_way_to_send_a_write_is_in_the_next_read(every_way, within, outcome):
    """A statement is judged as the server would read it, whatever its type and whichever method sends it. A rollback leaves the page warm."""

    def carry_out(write):
        with within():
            write()

    assert {way: found for way, found in every_way(carry_out).items() if found != outcome} == {}


@pytest.mark.only("real")
def test_no_way_to_send_a_write_leaves_a_row_in_the_outbox(every_way):
    """The triggers recognize each statement of this application, whatever its type and whichever method sends it. (SQLite has no such triggers.)"""
    left = []

    def carry_out(write):
        write()
        left.append(outbox.read(connection))

    ways = every_way(carry_out)
    assert {way: rows for way, rows in zip(ways, left, strict=True) if rows} == {}


def test_a_write_through_a_copy_of_the_connection_is_in_the_next_read(twenty_properties, warm, read_the_list):
    """`connection.copy()` has the same alias, but its own transactions."""
    warm()
    held = connections["default"]

    through_a_copy(RENAME)

    assert connections["default"] is held
    assert not connection.in_atomic_block
    assert read_the_list()[0]["agent"]["office"]["name"] == "Renamed"


@pytest.mark.only("real")
def test_rows_loaded_by_copy_are_in_the_next_read(twenty_properties, warm, read_the_list):
    """COPY loads rows without an INSERT. (SQLite has no COPY.)"""
    columns = ("title", "property_type", "status", "price", "location_id", "agent_id", "created_at", "updated_at")
    [values] = Property.objects.order_by("-created_at").values_list(*columns)[:1]
    name = SQL("housing_property")
    for text in (
        "COPY housing_property ({}) FROM STDIN".format(", ".join(columns)),
        "COPY housing_property ({}) FROM STDIN".format(", ".join(columns)).encode(),
        SQL("COPY {} ({}) FROM STDIN").format(name, SQL(", ").join(map(Identifier, columns))),
    ):
        title = f"Copied as {type(text).__name__}"
        warm()
        with connection.cursor() as cursor, cursor.copy(text) as copy:
            copy.write_row((title, *values[1:]))
        assert title in [row["title"] for row in read_the_list(page_size=100)]


@pytest.mark.only("real")
def test_a_failed_copy_leaves_every_page_warm(twenty_properties, warm, read):
    """An error of the server or inside the block rolls back, and Django converts the server's. (SQLite has no COPY.)"""
    warm()

    with pytest.raises(DatabaseError), connection.cursor() as cursor, cursor.copy("COPY housing_office (name, city) FROM STDIN") as copy:
        copy.write_row(("x" * 1000, "y"))
    with pytest.raises(ZeroDivisionError), connection.cursor() as cursor, cursor.copy("COPY housing_office (name, city) FROM STDIN"):
        raise ZeroDivisionError

    assert read("cached").came_from == "hit"
    assert not connection.in_atomic_block


@pytest.mark.only("real")
def test_a_streamed_write_is_committed_after_its_last_row(twenty_properties, warm, read, elsewhere):
    """Other connections do not see the write before that, and the entry stays valid. (SQLite's driver does not stream.)"""
    warm()
    names = {name for (name,) in Office.objects.values_list("name").distinct()}

    rows = connection.cursor().stream(f"{RENAME} RETURNING id")
    next(rows)
    assert elsewhere(lambda: {name for (name,) in Office.objects.values_list("name").distinct()}) == names
    assert elsewhere(lambda: read("cached")).came_from == "hit"
    list(rows)

    assert read("cached").rows[0]["agent"]["office"]["name"] == "Renamed"
    assert not connection.in_atomic_block


@pytest.mark.only("real")
def test_a_streamed_write_is_committed_even_if_its_rows_are_not_read(twenty_properties, warm, read):
    """Psycopg cancels the rows that are left, here 20 megabytes. The server has carried out the write by then. (SQLite's driver does not stream.)"""
    Office.objects.create(name="Another")
    warm()

    rows = connection.cursor().stream(f"{RENAME} RETURNING repeat('x', 10000000)")
    next(rows)
    rows.close()

    assert read("cached").rows[0]["agent"]["office"]["name"] == "Renamed"
    assert not connection.in_atomic_block


@pytest.mark.only("real")
def test_a_failed_streamed_write_leaves_every_page_warm(twenty_properties, warm, read):
    """Django's error is raised, as by `execute()`. (SQLite's driver does not stream.)"""
    warm()

    with pytest.raises(DatabaseError):
        list(connection.cursor().stream("UPDATE housing_office SET name = repeat('x', 1000) RETURNING id"))

    assert read("cached").came_from == "hit"


@pytest.mark.only("real")
def test_a_streamed_read_does_not_count_as_a_write(twenty_properties, warm, read):
    """It opens no transaction, and may be closed early. (SQLite's driver does not stream.)"""
    warm()

    assert len(list(connection.cursor().stream("SELECT id FROM housing_property"))) == 20
    rows = connection.cursor().stream("SELECT id FROM housing_property")
    next(rows)
    assert not connection.in_atomic_block
    rows.close()
    with connection.cursor() as cursor, cursor.copy("COPY housing_property (id, title) TO STDOUT") as copy:
        assert not connection.in_atomic_block
        assert len(list(copy.rows())) == 20

    assert read("cached").came_from == "hit"


@pytest.mark.only("embedded")
def test_a_write_by_a_procedure_is_in_the_next_read(twenty_properties, warm, read_the_list, monkeypatch):
    """SQLite has no procedures, so its cursor gets a callproc() here. (PostgreSQL's callproc() is one of the ways above.)"""
    warm()
    called = []

    def callproc(cursor, *how):
        called.append(how)
        cursor.execute(RENAME)

    monkeypatch.setattr(SQLiteCursorWrapper, "callproc", callproc, raising=False)

    connection.cursor().callproc("nightly")
    assert read_the_list()[0]["agent"]["office"]["name"] == "Renamed"

    connection.cursor().callproc("nightly", [1])
    with pytest.raises(NotSupportedError, match="Keyword parameters for callproc"):
        connection.cursor().callproc("nightly", [1], {"depth": 2})
    assert called == [("nightly",), ("nightly", [1])]


@pytest.mark.only("real")
@pytest.mark.parametrize(
    ("query", "stale"),
    [
        (b"SELECT 1", set()),
        (SQL("SELECT 1"), set()),
        (SQL("SELECT {}").format(Literal("x; DELETE FROM housing_office")), set()),
        (SQL("UPDATE {} SET caption = 'Renamed'").format(Identifier("housing_propertyimage")), {"the detail"}),
        (b"UPDATE housing_propertyimage SET caption = 'Renamed'", {"the detail"}),
        (SQL("SELECT {}").format(SQL("1; CALL f()")), {"the detail", "the list"}),
    ],
    ids=["a SELECT as bytes", "a SELECT", "a DELETE in a literal", "an UPDATE", "an UPDATE as bytes", "several statements"],
)
def test_a_statement_that_is_not_a_str_is_judged_by_its_text(twenty_properties, warm, read, query, stale):
    """`str()` of bytes or of psycopg's Composed is not the text of the statement. (SQLite's driver accepts only str.)"""
    home = twenty_properties[0]
    warm()
    warm(f"cached/{home.pk}")

    with nullcontext() if "the list" not in stale else pytest.raises(DatabaseError):
        execute(query)

    found = {"the list": read("cached"), "the detail": read(f"cached/{home.pk}")}
    if "the list" not in stale:
        assert {page for page, response in found.items() if response.came_from != "hit"} == stale


@pytest.mark.only("real")
@pytest.mark.parametrize("query", [b"COMMIT", SQL("COMMIT"), SQL("{}").format(SQL("/* done */ commit")), SQL("SELECT 1; ROLLBACK")], ids=repr)
def test_ending_a_transaction_with_a_statement_that_is_not_a_str_is_refused(transactional_db, query):
    """Bytes and psycopg's objects send the same statement. (SQLite's driver accepts only str.)"""
    refused = pytest.raises(NotSupportedError, match=r"Running (COMMIT|ROLLBACK) as raw SQL would bypass the cache")

    with transaction.atomic():
        with refused:
            execute(query)
        with refused:
            connection.cursor().executemany(query, [()])
        with refused:
            connection.cursor().copy(query).__enter__()
        with refused:
            list(connection.cursor().stream(query))


@pytest.mark.parametrize("query", [7, None, ["SELECT 1"], object], ids=repr)
def test_a_statement_of_an_unknown_type_is_refused(transactional_db, query):
    """A statement whose text cannot be read cannot be judged."""
    with pytest.raises(TypeError, match=f"A statement of type {type(query).__name__} is refused, because its text cannot be read. Pass str, bytes"):
        execute(query)


TEXTS = {
    "bytes": (b"UPDATE housing_office SET name = 'x'", "UPDATE housing_office SET name = 'x'"),
    "bytes that are no UTF-8": (b"SELECT '\xff'", "SELECT '\ufffd'"),
    "SQL": (SQL("COMMIT"), "COMMIT"),
    "Composed": (SQL("UPDATE {} SET name = {}").format(Identifier("a", 'b"c'), Literal("it's")), 'UPDATE "a"."b""c" SET name = \'it\'\'s\''),
    "Placeholder": (SQL("DELETE FROM t WHERE id = {}").format(Placeholder()), "DELETE FROM t WHERE id = %s"),
}
if sys.version_info >= (3, 14):
    TEXTS["template string"] = (eval("t'UPDATE {name:i} SET id = {pk}'", {"name": "t", "pk": 7}), 'UPDATE "t" SET id = 7')


@pytest.mark.parametrize("kind", TEXTS)
def test_the_text_of_a_statement_is_what_psycopg_sends(kind):
    """Psycopg also sends bytes, its own `sql` objects, and template strings from Python 3.14 on."""
    statement, text = TEXTS[kind]

    assert text_of(statement, postgresql_backend.DatabaseWrapper({})) == text


# Scripts


@pytest.mark.only("embedded")
def test_every_script_inside_a_transaction_is_refused(transactional_db):
    """SQLite's `executescript()` commits the transaction first. (PostgreSQL's driver has no such method.)"""
    with transaction.atomic(), pytest.raises(NotSupportedError, match="executescript commits by itself"):
        connection.cursor().executescript("CREATE TABLE elsewhere (id integer); DROP TABLE elsewhere;")


@pytest.mark.only("embedded")
@pytest.mark.parametrize(
    "script",
    [
        "DELETE FROM housing_property;",
        "SELECT 1; UPDATE legacy_view SET price = 1;",
        "/* ; SELECT */ DELETE FROM housing_property",
        "-- ; SELECT\nDELETE FROM housing_property",
        "BEGIN; DELETE FROM housing_property; COMMIT",
    ],
)
def test_a_script_that_may_write_a_tracked_table_is_refused(transactional_db, script):
    """`executescript()` commits before and after the script. (PostgreSQL's driver has no such method.)"""
    with pytest.raises(
        NotSupportedError, match=r"^executescript commits by itself and would bypass the cache. Execute the statements one by one in transaction.atomic\(\).$"
    ):
        connection.cursor().executescript(script)

    cursor = connection.cursor()
    assert cursor.executescript("BEGIN; CREATE TABLE elsewhere (id integer); DROP TABLE elsewhere; COMMIT") is cursor


@pytest.mark.only("embedded")
def test_a_script_after_an_uncommitted_write_is_refused(twenty_properties):
    """The script itself writes no tracked table, but it would commit the earlier write first. (PostgreSQL's driver has no such method.)"""
    with pytest.raises(NotSupportedError, match="executescript commits by itself"), transaction.atomic():
        twenty_properties[0].save()
        connection.cursor().executescript("CREATE TABLE elsewhere (id integer); DROP TABLE elsewhere;")
