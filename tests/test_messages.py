"""Messages to PostgreSQL. A transaction's BEGIN is sent with its first statement, and statements that are executed again and again are prepared."""

import datetime
import re
from contextlib import contextmanager
from decimal import Decimal
from itertools import combinations, islice
from unittest.mock import patch
from uuid import UUID

import psycopg
import pytest
from django.db import DataError, IntegrityError, connection, transaction
from django.db.backends.postgresql.base import Cursor as PostgreSQLCursor
from django.db.backends.postgresql.base import ServerBindingCursor
from django.http import QueryDict
from django.test.utils import CaptureQueriesContext
from psycopg import ClientCursor
from psycopg._preparing import PrepareManager
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from housing.filters import Query
from housing.freshness import Select, ours
from housing.freshness.postgresql import begin
from housing.freshness.postgresql.prepared import AFTER, MOST, Updates, is_plain
from housing.models import Property
from housing.views import select_of
from tests.fixtures.cache import clear_the_cache

# The BEGIN of a transaction


UPDATE = r"(?:WITH [^;]*)?UPDATE "
"""An UPDATE as it is sent. Servers before PostgreSQL 18 read the old values in the same statement."""


@contextmanager
def messages(path):
    """The statements that the driver sends in this block, one for each message. libpq traces what is really sent."""
    sent = []
    with path.open("w") as trace:
        connection.connection.pgconn.trace(trace.fileno())
        yield sent
        connection.connection.pgconn.untrace()
    sent += [line.split("\t")[-1].strip().strip('"') for line in path.read_text().splitlines() if "\tF\t" in line and "\tQuery\t" in line]


@pytest.mark.only("real")
def test_begin_is_sent_with_the_first_statement_of_a_transaction(twenty_properties, tmp_path):
    """As a message of its own it would be a third round trip of a write. The mark stays at the beginning, where the triggers look for it."""
    first, second = twenty_properties[:2]
    with messages(tmp_path / "trace") as sent, transaction.atomic():
        first.save()
        second.save()
    began, updated, committed = sent
    assert re.match(rf"/\* freshness [^*]* \*/ BEGIN; {UPDATE}", began)
    assert re.match(rf"/\* freshness [^*]* \*/ {UPDATE}", updated)
    assert committed == "COMMIT"

    with messages(tmp_path / "trace") as sent, ours().snapshot():
        connection.cursor().execute("SELECT 1")
    assert sent == ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1", "COMMIT"]


def copied(cursor):
    """Copy two rows out."""
    with cursor.copy("COPY (VALUES (1), (2)) TO STDOUT") as copy:
        return [bytes(row) for row in copy]


FIRST = {
    "a SELECT": lambda cursor: cursor.execute("SELECT %s::int, now() IS NULL", [7]).fetchall(),
    "a statement without rows": lambda cursor: cursor.execute("SET LOCAL work_mem = '4MB'").statusmessage,
    "an isolation level": lambda cursor: cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").execute("SHOW transaction_isolation").fetchall(),
    "a savepoint": lambda cursor: cursor.execute("SAVEPOINT here").statusmessage,
    "two statements": lambda cursor: (cursor.execute("SELECT 1; SELECT 2, 3").fetchall(), cursor.nextset(), cursor.fetchall(), cursor.nextset()),
    "no statement": lambda cursor: (cursor.execute("").description, cursor.rowcount),
    "bytes with a comment": lambda cursor: cursor.execute(b"-- BEGIN;\nSELECT 1").fetchall(),
    "an error": lambda cursor: cursor.execute("SELECT 1/0"),
    "an unknown table": lambda cursor: cursor.execute("SELECT * FROM nowhere"),
    "a syntax error": lambda cursor: cursor.execute("SELEC 1"),
    "a parameter that is missing": lambda cursor: cursor.execute("SELECT %s, %s", [1]),
    "executemany": lambda cursor: cursor.executemany("SELECT %s", [[1], [2]]) or cursor.rowcount,
    "a copy": copied,
    "a copy after another transaction": lambda cursor: (cursor.execute("SELECT 1"), cursor.connection.commit(), copied(cursor))[1:],
    "a stream": lambda cursor: list(cursor.stream("SELECT 1")),
}


def began_with(factory, first):
    """The results or errors of the first statement of a transaction with this class of cursor, of the next one, and of COMMIT; and the state after each."""
    driver, found = connection.connection, []
    with patch.object(driver, "cursor_factory", factory):
        cursor = driver.cursor()
    driver.autocommit = False
    for act in (lambda: first(cursor), lambda: cursor.execute("SELECT 8").fetchall(), driver.commit):
        try:
            found.append(act())
        except psycopg.Error as error:
            found.append((type(error), str(error).splitlines()[0]))
        found.append(TransactionStatus(driver.pgconn.transaction_status))
    driver.autocommit = True
    return found


@pytest.mark.only("real")
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_a_first_statement_has_the_results_and_errors_that_it_has_after_a_begin_of_its_own(home, first):
    """Nobody notices that they share a message: not by the rows, not by an error, and not by the state in which it leaves the transaction."""
    connection.ensure_connection()
    assert connection.connection.cursor_factory is begin.Cursor
    assert began_with(begin.Cursor, first) == began_with(PostgreSQLCursor, first)


@pytest.mark.only("real")
def test_a_connection_with_a_cursor_of_its_own_keeps_it(home, elsewhere):
    """Server-side binding sends each statement alone, and a class in the settings may have methods that need a BEGIN."""
    for options, expected in (({"server_side_binding": True}, ServerBindingCursor), ({"cursor_factory": ClientCursor}, ClientCursor)):
        with patch.dict(connection.settings_dict, {"OPTIONS": connection.settings_dict["OPTIONS"] | options}):
            assert elsewhere(lambda: (connection.ensure_connection(), connection.connection.cursor_factory)[1]) is expected


# Prepared SELECTs


@pytest.fixture
def twenty_properties(twenty_properties):
    """With a new connection, on which nothing is prepared."""
    connection.close()
    connection.ensure_connection()
    return twenty_properties


PAGES = [f"ordering={ordering}&min_price={price}" for ordering in ("price", "-price") for price in range(MOST)]


def prepared():
    """The names of this connection's prepared statements, by the name of the driver, and their texts."""
    return connection.connection.execute("SELECT name, statement FROM pg_prepared_statements").fetchall()


def compiled(query=""):
    """The SELECT of a page."""
    return select_of(Query(QueryDict(query)))


def executed(select, times=AFTER + 2):
    """Execute a SELECT often enough to be prepared, and return its rows, which are always the same."""
    first, *others = [select.rows() for _ in range(times)]
    assert all(rows == first for rows in others)
    return first


@pytest.mark.only("real")
def test_a_page_is_prepared_when_it_was_read_twice(twenty_properties, read, queries):
    """To plan it takes the server longer than to read it. One that is read only once is not worth a round trip. A snapshot's SELECTs are never prepared."""
    assert connection.is_direct
    body = read("optimized").body
    for number in range(AFTER + 2):
        clear_the_cache()
        assert len(prepared()) == (number > AFTER)
        with queries.exactly(1, because="preparing is no query"):
            assert read("cached").body == body
        with transaction.atomic():
            compiled("page_size=3").rows()

    [(name, statement)] = prepared()
    assert statement.startswith('SELECT "housing_property"."id"')
    assert int(name.removeprefix("_pg3_")) > 2**32  # a random number, so that no other program has the name


@pytest.mark.only("real")
def test_a_filtered_page_is_prepared_with_its_values(twenty_properties):
    """Values become part of the text as in Django's cursors, so PostgreSQL decides about their types as usual, and two pages never share a statement."""
    for query in ("search=100%25&city=O'Hara", "min_price=1.5&ordering=price", "city=Springfield&status=available&agent=1"):
        select = compiled(query)
        assert executed(select) == Select(select._queryset).rows()
    assert len({statement for _, statement in prepared()}) == 3


@pytest.mark.only("real")
def test_few_statements_of_a_connection_are_prepared(twenty_properties):
    """Each takes some 150 kB of the server's memory, on each connection."""
    for page in PAGES:
        executed(compiled(page))
    assert len(prepared()) <= MOST + 1  # the oldest is deallocated after the next statement


@pytest.mark.only("real")
def test_a_statement_that_was_deallocated_is_executed_without_it(twenty_properties):
    """A pooler that hides well, or code that sends DISCARD ALL, does so. Nothing is prepared on this connection any longer."""
    page = compiled()
    rows = executed(page)
    connection.connection.execute("DEALLOCATE ALL")  # the driver notices nothing, because it prepares nothing at the moment

    assert executed(page) == rows
    assert (connection.is_direct, prepared()) == (False, [])
    connection.close()


@pytest.mark.only("real")
def test_a_column_with_another_type_is_read_without_a_restart(twenty_properties):
    """A migration changes it while the old version still runs, and the server refuses the old plan."""
    page = compiled()
    rows, names = executed(page), [name for name, _ in prepared()]
    try:
        for length in (300, 400):
            connection.connection.execute(f"ALTER TABLE housing_property ALTER COLUMN title TYPE varchar({length})")
            assert executed(page) == rows
            names += [name for name, _ in prepared()]
        assert len(set(names)) == len(names) == 3  # each time another statement is prepared
    finally:
        connection.connection.execute("ALTER TABLE housing_property ALTER COLUMN title TYPE varchar(200)")


@pytest.mark.only("real")
@pytest.mark.parametrize(
    ("parts", "most"),
    [({"TIME_ZONE": "Europe/Paris"}, MOST), ({"OPTIONS": {"prepare_threshold": None}}, PrepareManager.prepared_max)],
    ids=["another time zone", "a setting"],
)
def test_a_connection_with_settings_of_its_own_prepares_nothing(twenty_properties, elsewhere, parts, most):
    """In another time zone, Django converts times with a cursor of its own. `prepare_threshold=none` in the URL turns preparing off."""
    rows = executed(compiled())
    options = connection.settings_dict["OPTIONS"] | parts.get("OPTIONS", {})

    with patch.dict(connection.settings_dict, parts | {"OPTIONS": options}):
        assert elsewhere(lambda: (executed(compiled()), prepared(), connection.connection.prepared_max)) == (rows, [], most)


# Prepared UPDATEs


@pytest.mark.only("real")
def test_a_row_that_is_saved_again_is_updated_by_a_prepared_statement(home, tmp_path):
    """Parsing and planning takes the server up to half of the time of an UPDATE. Execute wrappers and the log of queries see the UPDATE itself."""
    connection.close()
    for number, first in enumerate([f"{UPDATE}.*"] * AFTER + [rf"PREPARE NAME AS {UPDATE}.*; EXECUTE NAME \(.*\)", r"EXECUTE NAME \([^$]*\)"]):
        home.price = number
        connection.ensure_connection()
        with messages(tmp_path / "trace") as sent, CaptureQueriesContext(connection) as queries:
            home.save()
        began, committed = sent
        name = (prepared() or [("",)])[0][0]
        assert re.fullmatch(rf"/\* freshness [^*]* \*/ BEGIN; {first.replace('NAME', name)}", began)
        assert re.match(rf"""{UPDATE}"housing_property" SET "title" = '""", queries[1]["sql"])
        assert committed == "COMMIT"
        home.refresh_from_db()
        assert home.price == number
    assert connection.connection.execute("SELECT count(*) FROM freshness_outbox").fetchone() == (0,)  # the triggers see the mark


TYPES = {
    "varchar(5)": ("abc", "100% '", "too long", 7),
    "char(5)": ("a", "too long"),
    "text": ("\\ %s $1", "", 7),
    "numeric(6,2)": (Decimal("1.005"), 1.005, "7", Decimal("12345.678"), "NaN"),
    "integer": (7, 2.5, "7", Decimal("3.5"), 2**31, "seven", True),
    "smallint": (7, 2**15),
    "bigint": (2**62, 2**63),
    "double precision": (0.1, Decimal("0.1"), "Infinity"),
    "boolean": (True, "yes", 1),
    "timestamp with time zone": (datetime.datetime(2026, 3, 29, 1, tzinfo=datetime.UTC), "2026-03-29 03:00+02", "never", datetime.date(2026, 3, 29)),
    "date": (datetime.date(2026, 2, 28), "2026-02-30", datetime.datetime(2026, 3, 29, 1, tzinfo=datetime.UTC)),
    "interval": (datetime.timedelta(days=1, microseconds=5), "1 month"),
    "jsonb": (Jsonb({"a": [1, None, "%s"]}), "{}", "{"),
    "bytea": (b"\x00%", "a"),
    "integer[]": ([1, None], [], "{1,2}"),
    "uuid": (UUID(int=7), "7"),
    "inet": ("127.0.0.1", "localhost"),
}
"""Type of a column → values that it stores, converts or refuses."""


def updated(cursor, value):
    """Update the only row in a transaction. Returns the stored value, or the error."""
    driver = cursor.connection
    driver.execute("UPDATE kinds SET value = NULL")
    driver.autocommit = False
    try:
        cursor.execute('UPDATE "kinds" SET "value" = %s WHERE "kinds"."id" = %s', [value, 1])
        return driver.execute("SELECT value::text FROM kinds").fetchall()
    except psycopg.Error as error:
        return type(error), str(error).splitlines()[0]
    finally:
        driver.rollback()
        driver.autocommit = True


@pytest.mark.only("real")
@pytest.mark.parametrize("kind", TYPES)
def test_a_prepared_update_stores_and_refuses_what_the_update_itself_does(transactional_db, kind):
    """PostgreSQL could choose other types for parameters. In an UPDATE that only assigns values, it takes those of the columns both times."""
    connection.close()
    connection.ensure_connection()
    driver = connection.connection
    driver.execute(f"CREATE TEMPORARY TABLE kinds (id bigint PRIMARY KEY, value {kind})")
    driver.execute("INSERT INTO kinds VALUES (1)")
    cursor, preparing = driver.cursor(), driver.cursor()
    for value in TYPES[kind]:
        preparing.updates = Updates()
        for _ in range(AFTER + 1):
            updated(preparing, TYPES[kind][0])
        assert updated(preparing, value) == updated(cursor, value)
    assert len(prepared()) == len(TYPES[kind])
    connection.close()


@pytest.mark.only("real")
def test_an_update_that_fails_is_not_sent_again(home, tmp_path):
    """It would wait for a lock a second time, or longer than statement_timeout allows."""
    connection.close()
    for _ in range(AFTER + 1):
        home.save()
    home.price = None
    with messages(tmp_path / "trace") as sent, pytest.raises(IntegrityError):
        home.save()
    home.price = 7
    for _ in range(AFTER + 1):
        home.save()
    home.title = "x" * 201
    with messages(tmp_path / "again") as again, pytest.raises(DataError):
        home.save()
    assert [len(sent), len(again)] == [2, 2]  # each with its ROLLBACK
    assert "EXECUTE" in again[0]


@pytest.mark.only("real")
@pytest.mark.parametrize(
    "text",
    [
        'UPDATE "t" SET "a" = ("t"."a" + %s) WHERE "t"."id" = %s',
        'UPDATE "t" SET "a" = %s WHERE "t"."id" = %s AND "t"."b" = %s',
        'UPDATE "t" SET "a" = %s WHERE "t"."id" IN (%s, %s)',
        'UPDATE "t" SET "a" = %s',
        'UPDATE "t" SET "a%%" = %s WHERE "t"."id" = %s',
        'UPDATE "t" SET "a" = pgp_sym_encrypt(%s) WHERE "t"."id" = %s',
        'DELETE FROM "t" WHERE "t"."id" = %s',
    ],
)
def test_only_an_update_of_one_row_that_assigns_values_is_prepared(text):
    """The type of a parameter in an expression is not that of a column, and each number of values in a list would be another statement."""
    assert not is_plain(text)


@pytest.mark.only("real")
def test_few_updates_of_a_connection_are_prepared(home):
    """Each takes memory of the server, on each connection. The one that is unused for the longest time is deallocated."""
    connection.close()
    fields = [field.name for field in Property._meta.concrete_fields if not field.primary_key]
    pairs = list(islice(combinations(fields, 2), MOST + 5))
    for pair in pairs:
        for _ in range(AFTER + 1):
            home.save(update_fields=pair)
    assert len(prepared()) == MOST
    assert all(len([statement for _, statement in prepared() if f'"{one}' in statement and f'"{other}' in statement]) for one, other in pairs[-MOST:])


@pytest.mark.only("real")
@pytest.mark.parametrize("forget", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_an_update_whose_statement_was_deallocated_is_executed_without_it(home, forget, tmp_path):
    """A pooler that hides well, or other code, does so. It is the first statement of its transaction, so nothing is lost. Nothing is prepared any longer."""
    connection.close()
    for number in range(AFTER + 3):
        if number == AFTER + 1:
            connection.connection.execute(forget)
        home.price = number
        home.save()
        assert Property.objects.get(pk=home.pk).price == number
        assert len(prepared()) == (number == AFTER)
    with messages(tmp_path / "trace") as sent:
        home.save()
    assert len(sent) == 2
    connection.close()


@pytest.mark.only("real")
def test_an_update_after_a_select_whose_statements_were_deallocated_is_prepared_again(home):
    """The type of a column has changed, so the driver deallocates all statements, also those that were not its own."""
    connection.close()
    page = compiled()
    for _ in range(AFTER + 1):
        home.save()
    rows = executed(page)
    try:
        connection.connection.execute("ALTER TABLE housing_property ALTER COLUMN title TYPE varchar(300)")
        assert executed(page, times=1) == rows
        for number in range(AFTER + 1):
            home.save()
            assert any("UPDATE" in statement for _, statement in prepared()) == (number == AFTER)
    finally:
        connection.connection.execute("ALTER TABLE housing_property ALTER COLUMN title TYPE varchar(200)")


@pytest.mark.only("real")
@pytest.mark.parametrize("text", ["SELECT %s IS NULL", "SET LOCAL application_name = %s"], ids=["a type is unknown", "it has no plan"])
def test_a_statement_that_cannot_be_prepared_is_executed_as_any_other(transactional_db, text):
    """The server refuses to prepare it, in a transaction or because of the syntax of the whole message."""
    connection.ensure_connection()
    driver = connection.connection
    cursor = driver.cursor()
    cursor.updates = Updates()
    for _ in range(AFTER + 2):
        driver.autocommit = False
        cursor.execute(text, ["a"])
        assert cursor.statusmessage in ("SELECT 1", "SET")
        assert driver.pgconn.transaction_status == TransactionStatus.INTRANS
        driver.rollback()
        driver.autocommit = True
    assert not cursor.updates.may_prepare


@pytest.mark.only("real")
def test_an_update_is_not_prepared_where_no_page_is(home, elsewhere):
    """`prepare_threshold=none` in the URL turns preparing off."""
    with patch.dict(connection.settings_dict, {"OPTIONS": connection.settings_dict["OPTIONS"] | {"prepare_threshold": None}}):
        assert elsewhere(lambda: ([home.save() for _ in range(AFTER + 2)], prepared())[1]) == []
