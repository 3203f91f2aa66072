"""The ways to send SQL or a Redis command that the instruments count, from any thread. Specs walk the registries of the drivers, so that a new way fails."""

import asyncio
import inspect
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from functools import partial
from urllib.request import urlopen

import psycopg
import pytest
import redis
import redis.asyncio
from asgiref.sync import async_to_sync, sync_to_async
from django.core.management.color import no_style
from django.db import connection, connections, transaction
from django.db.backends.utils import CursorDebugWrapper, CursorWrapper
from django.test import AsyncClient
from django_redis import get_redis_connection
from psycopg import sql as composed

from housing.freshness import statements
from housing.models import Office
from housing.views import PropertyListView, QueryCounter
from tests import instruments
from tests.fixtures.failures import failure
from tests.fixtures.stub import Stub
from tests.instruments import CONTROL, PSYCOPG, STREAMS, bytes_of, redis_connections

# Statements


def select_from_another_database():
    with closing(sqlite3.connect(":memory:")) as driver:
        driver.execute("SELECT 1")


SQLITE = {
    "executescript": lambda: connection.cursor().executescript("SELECT 1"),
    "the driver's connection": lambda: connection.connection.execute("SELECT 1"),
    "the driver's cursor": lambda: connection.connection.cursor().execute("SELECT 1"),
    "a new connection of the driver": select_from_another_database,
}
POSTGRESQL = {
    "callproc": lambda: connection.cursor().callproc("now"),
    "Django's own callproc": lambda: CursorWrapper(connection.connection.cursor(), connection).callproc("now"),
    "copy": lambda: exhaust(connection.cursor().copy("COPY (SELECT 1) TO STDOUT")),
    "stream": lambda: list(connection.cursor().stream("SELECT 1")),
    "a Composed": lambda: connection.cursor().execute(composed.SQL("SELECT {}").format(composed.Literal(1))),
    "bytes": lambda: connection.cursor().execute(b"SELECT 1"),
    "the driver's connection": lambda: connection.connection.execute("SELECT 1"),
    "the driver's cursor": lambda: connection.connection.cursor().execute("SELECT 1"),
    "a cursor on the server": lambda: list(Office.objects.iterator()),
    "an asynchronous connection": lambda: asyncio.run(select_asynchronously()),
}


def exhaust(copying):
    with copying as copy:
        list(copy)


async def select_asynchronously():
    async with await psycopg.AsyncConnection.connect(**connection.get_connection_params() | {"cursor_factory": None, "context": None}) as driver:
        await driver.execute("SELECT 1")


BOTH = {
    "execute": lambda: connection.cursor().execute("SELECT 1"),
    "executemany": lambda: connection.cursor().executemany("UPDATE housing_office SET name = %s WHERE id < 0", [("a",), ("b",)]),
    "the ORM": Office.objects.count,
}


@pytest.mark.parametrize("way", BOTH)
def test_a_statement_through_djangos_cursor_is_counted_once(transactional_db, queries, way):
    with queries.exactly(1, because="one statement is executed"):
        BOTH[way]()


@pytest.mark.only("embedded")
@pytest.mark.parametrize("way", SQLITE)
def test_a_statement_is_counted_below_djangos_cursor_on_sqlite(transactional_db, queries, way):
    """These methods pass Django's execute wrappers by. (PostgreSQL has others.)"""
    connection.ensure_connection()
    with queries.exactly(1, because="one statement is executed"):
        SQLITE[way]()


@pytest.mark.only("real")
@pytest.mark.parametrize("way", POSTGRESQL)
def test_a_statement_is_counted_below_djangos_cursor_on_postgresql(transactional_db, queries, way):
    """These methods pass Django's execute wrappers by, or have a statement that is not a str. (SQLite has others.)"""
    connection.ensure_connection()
    with queries.exactly(1, because="one statement is executed"):
        POSTGRESQL[way]()


def test_every_method_of_psycopgs_cursors_that_sends_a_statement_is_counted(monkeypatch, queries):
    """The spec needs no server: it replaces each method before the instrument watches it. The statement is a str, bytes, or an object of psycopg."""
    texts = [b"SELECT 1", composed.SQL("SELECT {}").format(composed.Identifier("a")), "SELECT 2"]
    for kind, names in PSYCOPG.items():
        for name in names:
            monkeypatch.setattr(getattr(psycopg, kind), name, lambda cursor, *_, **__: cursor)
    for kind, names in PSYCOPG.items():
        with queries.exactly(len(names) * len(texts), because="each method is called with each type") as seen:
            for name in names:
                for text in texts:
                    getattr(getattr(psycopg, kind), name)(None, text)
        assert seen == ["SELECT 1", 'SELECT "a"', "SELECT 2"] * len(names)
        assert failure(lambda seen=seen: seen.rows).startswith("not seen: the rows of statements that were sent below Django's cursor:")


WAITS_FOR_ROWS = {"close", "fetchone", "fetchmany", "fetchall", "__next__", "__anext__", "scroll", "__aiter__", "_fetch_pipeline", "results", "set_result"}
"""Methods of psycopg's cursors that send FETCH, CLOSE or nothing."""


@pytest.mark.parametrize("kind", PSYCOPG)
def test_a_new_method_of_psycopgs_cursors_that_waits_for_the_server_is_reviewed(kind):
    """If this fails for a new psycopg, find out whether the method sends a statement. If it does, add it to PSYCOPG in the instruments."""
    cursor = getattr(psycopg, kind)
    waits = {name for name, method in vars(cursor).items() if inspect.isfunction(method) and "_conn.wait(" in inspect.getsource(inspect.unwrap(method))}

    assert waits >= {"execute"}
    assert waits - WAITS_FOR_ROWS <= set(PSYCOPG[kind]), f"review the new methods of {kind}"
    assert {name for each in type.mro(cursor) for name in vars(each)} & {"execute", "executemany", "stream", "copy"} == set(PSYCOPG["Cursor"])


SQLITE_SENDS = {"execute", "executemany", "executescript", "iterdump", "commit", "rollback"}
"""Methods of sqlite3 whose statements its trace callback reports."""

SQLITE_SENDS_NOTHING = {
    *("close", "cursor", "create_aggregate", "create_collation", "create_function", "create_window_function", "getlimit", "setlimit", "getconfig", "setconfig"),
    *("interrupt", "set_authorizer", "set_progress_handler", "set_trace_callback", "enable_load_extension", "load_extension"),
    *("fetchall", "fetchmany", "fetchone", "setinputsizes", "setoutputsize"),
}
SQLITE_NOT_SEEN = {"backup", "blobopen", "deserialize", "serialize"}
"""The docstring of the instruments says so."""


def test_a_new_method_of_sqlite3_is_reviewed():
    """If this fails for a new Python, find out whether the trace callback reports what the method does."""
    names = {name for kind in (sqlite3.Connection, sqlite3.Cursor) for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}

    errors = {name for name in names if inspect.isclass(getattr(sqlite3, name, None))}
    assert names - errors - SQLITE_SENDS - SQLITE_SENDS_NOTHING - SQLITE_NOT_SEEN == set()
    assert {name for name in SQLITE_NOT_SEEN if f"`{name}()`" not in " ".join(instruments.__doc__.split())} == set()


def test_every_method_of_djangos_cursor_that_calls_the_driver_is_watched():
    """If this fails for a new Django, add the method to DJANGO in the instruments, unless it executes nothing."""
    calls = {
        name
        for kind in (CursorWrapper, CursorDebugWrapper)
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and "self.cursor" in inspect.getsource(method)
    }

    through_the_watched = {"_execute", "_executemany"}  # which _execute_with_wrappers calls
    assert calls - through_the_watched - instruments.DJANGO.keys() == {"__init__", "__getattr__", "debug_sql"}


def test_rows_are_counted_however_they_are_fetched(transactional_db, queries):
    """`for row in cursor` calls no method that begins with fetch."""
    Office.objects.bulk_create([Office(name=name) for name in "abcdefg"])
    with queries.exactly(2, because="one SELECT by SQL and one by the ORM") as seen, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM housing_office")
        rows = [cursor.fetchone(), *cursor.fetchmany(2), *cursor, *cursor.fetchall(), *Office.objects.values_list("name")]

    assert seen.rows == len(rows) == 14


@pytest.mark.parametrize("text", ["SAVEPOINT a", "/* request 7 */ SAVEPOINT a", "-- request 7\nRELEASE a", "rollback to savepoint a;", " ;START  TRANSACTION"])
def test_transaction_control_is_recognized_behind_a_comment(text):
    """Some tools write the request's id before each statement."""
    assert CONTROL.match(text)


@pytest.mark.parametrize(
    "text", ["BEGIN; DELETE FROM a", "-- a\rDELETE FROM b\n;COMMIT", "/*! DELETE FROM a */ COMMIT", "SELECT 1", "/* SAVEPOINT */ SELECT 1"]
)
def test_a_text_that_is_more_than_transaction_control_is_counted(text):
    """PostgreSQL ends a comment at a carriage return, and MySQL executes one that begins with an exclamation mark."""
    assert not CONTROL.match(text)


def test_a_comment_of_any_length_is_recognized_in_linear_time():
    """A pattern that backtracks would need years."""
    for text in ("/* */" * 5000 + "x", "/*" * 5000 + "x", "-- a\n" * 5000 + "x", "BEGIN" + "\n" * 5000 + ";x"):
        assert not CONTROL.match(text)


def test_server_timing_counts_the_same_statements_as_the_instruments(twenty_properties, read, queries, monkeypatch):
    """They have one definition of transaction control: a savepoint is not a query."""
    monkeypatch.setattr(PropertyListView, "get", transaction.atomic(PropertyListView.get))

    with transaction.atomic(), queries.exactly(1, because="SAVEPOINT and RELEASE read and write no rows"):
        assert read("optimized").headers["Server-Timing"].startswith('sql;desc="1 query"')
    assert (CONTROL.pattern, CONTROL.flags) == (statements.CONTROL.pattern, statements.CONTROL.flags)


def test_server_timing_counts_a_statement_that_is_an_object_of_psycopg():
    """A view may send one. (No view of this project does, so the spec calls the counter.)"""
    counter = QueryCounter()
    for statement in (composed.SQL("SELECT 1"), b"SELECT 1", "SELECT 1"):
        assert counter(lambda sql, *_: sql, statement, None, False, {}) is statement

    assert counter.statements == 3


def test_opening_a_connection_is_not_counted(transactional_db, queries):
    """Its settings are no query of the code that happens to need the connection first."""
    connection.close()
    with queries.exactly(1, because="a count is one query"):
        Office.objects.count()


# Threads and tasks


def in_a_thread(act):
    """Call `act` in a thread of its own, with its own connections."""

    def alone():
        try:
            act()
        finally:
            connections.close_all()

    thread = threading.Thread(target=alone, name="another")
    thread.start()
    thread.join()


SENDS = {"queries": Office.objects.count, "redis_commands": lambda: get_redis_connection("default").ping()}


@pytest.mark.parametrize("instrument", SENDS)
def test_another_thread_is_refused_or_counted_or_ignored(transactional_db, request, instrument):
    """A count that misses a thread is no proof of anything."""
    counter, send = request.getfixturevalue(instrument), SENDS[instrument]
    send()

    def sends():
        with counter.exactly(0, because="nothing is sent here"):
            in_a_thread(send)

    lines = failure(sends).splitlines()
    assert lines[2].startswith("not seen: 1 ")
    assert lines[2].endswith(" of another thread (another)")
    assert "tests/test_counting.py:…" in " ".join(lines)
    assert lines[-1] == "to do:    this block used another thread; pass threads=True to count it, or threads=False to ignore it."
    with counter.exactly(2, because="the other thread is counted, too", threads=True):
        in_a_thread(send)
        send()
    with counter.exactly(1, because="the other thread is ignored", threads=False):
        in_a_thread(send)
        send()


def test_a_live_server_is_another_thread(live_server, twenty_properties, queries):
    def asks():
        with urlopen(f"{live_server.url}/api/properties/live/optimized/") as response:
            assert response.status == 200

    with queries.exactly(1, because="one SELECT joins location, agent and office", threads=True):
        asks()

    def asks_without_threads():
        with queries.exactly(0, because="the server has a thread of its own"):
            asks()

    assert "this block used another thread; pass threads=True" in failure(asks_without_threads)


@contextmanager
def closing_the_connection_of_async_views():
    """asgiref keeps one thread for synchronous code, and so its connection."""
    try:
        yield
    finally:
        asyncio.run(sync_to_async(connections.close_all)())


def test_an_asynchronous_test_is_counted(twenty_properties, queries, redis_commands):
    """asgiref calls the view in another thread, which works for the block."""

    async def asks(path):
        with queries.exactly(1, because="one SELECT joins location, agent and office") as seen, redis_commands.at_most(4, because="a cold page"):
            response = await AsyncClient().get(path)
        assert response.status_code == 200
        return seen

    with closing_the_connection_of_async_views():
        [statement] = asyncio.run(asks("/api/properties/live/optimized/"))
    assert statement.thread != threading.current_thread().name


def test_an_asynchronous_query_is_counted_and_its_block_is_shown(transactional_db, queries):
    """The thread that executes the query has no frame of the code that awaits it."""

    async def counts():
        with queries.exactly(0, because="nothing is read"):
            await Office.objects.acount()

    with closing_the_connection_of_async_views():
        message = failure(lambda: asyncio.run(counts()))
    assert message.splitlines()[1] == "happened: 1 query"
    assert "         in the block of tests/test_counting.py:…" in message


def test_asynchronous_code_below_a_synchronous_test_is_counted(transactional_db, queries):
    """The synchronous client calls asynchronous views in this way."""

    async def counts():
        await Office.objects.acount()

    with queries.exactly(1, because="a count is one query"):
        async_to_sync(counts)()


# Redis

REPLIES = {
    "GET": b"$6\r\nna\xc3\xafve\r\n",
    "PING": b"+PONG\r\n",
    "INCR": b":12\r\n",
    "EXISTS": b"_\r\n",
    "HGETALL": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "ZSCORE": b",1.50\r\n",
    "SMEMBERS": b"~1\r\n$1\r\na\r\n",
    "TYPE": b"-ERR none\r\n",
}


class Weighing(Stub):
    """A server that counts its bytes."""

    def __init__(self, **where):
        super().__init__(**where)
        self.replies |= REPLIES
        self.weight = 0

    def reply(self, *command):
        found = super().reply(*command)
        self.weight += len(found)
        return found


@pytest.fixture(params=["tcp", "unix"])
def server(request, tmp_path_factory):
    """A server, and how to connect to it."""
    path = str(tmp_path_factory.mktemp("s") / "redis")
    where = {} if request.param == "tcp" else {"address": path, "family": "AF_UNIX"}
    with Weighing(**where) as server:
        serving = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        serving.start()
        host, port = server.server_address if request.param == "tcp" else (None, None)
        server.connects = {"host": host, "port": port} if host else {"unix_socket_path": path}
        yield server
        server.shutdown()
        serving.join()


COMMANDS = [("GET", "a"), ("INCR", "a"), ("EXISTS", "a"), ("HGETALL", "a"), ("ZSCORE", "a", "b"), ("SMEMBERS", "a"), ("TYPE", "a"), ("PING",)]


@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "decode_responses"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_round_trips_and_bytes_are_counted_for_every_connection(server, redis_commands, protocol, decode):
    """The server counts its bytes itself. redis-py decodes replies, and does not keep their sizes."""
    with redis.Redis(**server.connects, protocol=protocol, decode_responses=decode) as client:
        client.ping()
        before = server.weight
        with redis_commands.exactly(len(COMMANDS), because="each command is one round trip") as seen:
            for command in COMMANDS:
                with suppress(redis.ResponseError):
                    client.execute_command(*command)

    assert list(seen) == [command[0] for command in COMMANDS]
    assert (seen.received, server.weight - before) == (sum(map(len, REPLIES.values())),) * 2
    assert seen.sent == sum(len(f"*{len(each)}\r\n") + sum(len(f"${len(part)}\r\n{part}\r\n") for part in each) for each in COMMANDS)


def test_round_trips_and_bytes_of_redis_asyncio_are_counted(server, redis_commands):
    """Its classes do not derive from those of the synchronous client."""

    async def asks():
        async with redis.asyncio.Redis(**server.connects) as client:
            await client.ping()
            with redis_commands.exactly(len(COMMANDS), because="each command is one round trip") as seen:
                for command in COMMANDS:
                    with suppress(redis.ResponseError):
                        await client.execute_command(*command)
            return seen

    seen = asyncio.run(asks())
    assert seen.received == sum(map(len, REPLIES.values()))
    assert {sent.place.partition(":")[0] for sent in seen} == {"tests/test_counting.py"}


def test_a_subclass_that_calls_super_is_counted_once(server, redis_commands):
    """A project may log its commands like this."""
    parent = redis.UnixDomainSocketConnection if "unix_socket_path" in server.connects else redis.Connection

    class Logging(parent):
        def send_packed_command(self, command, check_health=True):
            return super().send_packed_command(command, check_health)

        def read_response(self, *args, **kwargs):
            return super().read_response(*args, **kwargs)

    where = server.connects | ({"path": server.connects["unix_socket_path"]} if "unix_socket_path" in server.connects else {})
    where.pop("unix_socket_path", None)
    with redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Logging, **where)) as client:
        client.ping()
        with redis_commands.exactly(1, because="PING is one round trip") as seen:
            client.ping()
        client.connection_pool.disconnect()
    assert seen.received == len(REPLIES["PING"])


def test_bytes_of_a_fake_server_are_computed(redis_commands):
    """A fake server has no socket. The protocol of the connection decides how a reply is sent."""
    client = get_redis_connection("default")
    client.set("a", b"four")
    with redis_commands.exactly(2, because="each key is read with one GET") as seen:
        client.get("a")
        client.get("nothing")
    client.delete("a")

    assert seen.sent == len(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGET\r\n$7\r\nnothing\r\n")
    assert seen.received == len(b"$4\r\nfour\r\n_\r\n")
    assert bytes_of([b"four", 12, [None]], 2) == len(b"*3\r\n$4\r\nfour\r\n:12\r\n*1\r\n$-1\r\n")
    assert bytes_of(["four", True, {"a": None}, {1}]) == len(b"*4\r\n$4\r\nfour\r\n#t\r\n%1\r\n$1\r\na\r\n_\r\n~1\r\n:1\r\n")
    assert bytes_of({"a": 1}, 2) == len(b"*2\r\n$1\r\na\r\n:1\r\n")


DELEGATES = {"ConnectionInterface", "CacheProxyConnection"}
"""Classes of redis-py that send nothing themselves: the abstract one, and one that wraps another connection."""


@pytest.mark.parametrize("module", [redis.connection, redis.asyncio.connection], ids=lambda module: module.__name__)
def test_every_class_of_redis_pys_connections_is_watched(module):
    """If this fails for a new redis-py, find out whether the class or the method sends by itself, and watch it in the instruments."""
    classes = {kind for kind in vars(module).values() if inspect.isclass(kind) and hasattr(kind, "send_packed_command")}

    assert len(classes) > 3
    assert {kind.__name__ for kind in classes - redis_connections()} <= DELEGATES
    source = {name: inspect.getsource(method) for name, method in vars(module.AbstractConnection).items() if inspect.isfunction(method)}
    assert {name for name, text in source.items() if ".sendall(" in text or ".writelines(" in text} <= {"send_packed_command", "_send_packed_command"}
    assert {name for name, text in source.items() if "_parser.read_response(" in text} <= {"read_response", "_read_response_from_parser"}


def test_redis_py_reads_only_by_the_methods_that_are_weighed():
    """If this fails for a new redis-py, add the method to STREAMS in the instruments."""
    text = "".join(
        inspect.getsource(inspect.getmodule(parser))
        for parser in (redis._parsers._HiredisParser, redis._parsers.socket.SocketBuffer, redis._parsers._AsyncRESP3Parser)
    )
    text += inspect.getsource(redis._parsers.base)

    used = {
        name
        for name in ("recv", "recv_into", "recvfrom", "recvmsg", "read", "readexactly", "readuntil", "readline")
        if f"sock.{name}(" in text or f"_stream.{name}(" in text
    }
    assert used - {"readline"} <= {name for names in STREAMS.values() for name in names}  # readline() calls readuntil()
    assert "recv_into" in used


# Zero proves something


def test_zero_queries_fail_without_a_database(queries, monkeypatch):
    """`settings.DATABASES` may be empty."""
    monkeypatch.setattr(connections, "all", lambda **_: [])

    def counts_nothing():
        with queries.exactly(0, because="nothing is read"):
            pass

    assert failure(counts_nothing).splitlines()[-1] == "not seen: settings.DATABASES has no database, so no query could have been counted."


def test_zero_queries_fail_for_a_backend_with_another_cursor(queries, monkeypatch):
    """Its statements would pass the instrument by."""
    monkeypatch.setattr(type(connections["default"]), "make_cursor", lambda *_: object())

    def counts_nothing():
        with queries.exactly(0, because="nothing is read"):
            pass

    expected = "not seen: the cursors of default are not of Django's class CursorWrapper, so their queries are not counted."
    assert failure(counts_nothing).splitlines()[-1] == expected


def test_zero_round_trips_fail_without_a_connection_of_redis_py(redis_commands, monkeypatch):
    """The project may use another client."""
    monkeypatch.setattr(instruments.gc, "get_objects", list)

    def counts_nothing():
        with redis_commands.exactly(0, because="nothing is read"):
            pass

    assert failure(counts_nothing).splitlines()[-1].startswith("not seen: no connection of redis-py exists, so another client may be in use.")


def test_blocks_leave_what_they_watched_as_it_was(transactional_db, queries, redis_commands):
    """The hooks are shared by all open blocks, which may end in any order."""
    watched = [CursorWrapper, *(getattr(psycopg, kind) for kind in PSYCOPG), *redis_connections(), *STREAMS]
    before = [dict(vars(kind)) for kind in watched]

    one, other = queries.at_most(9, because="some"), queries.exactly(1, because="one")
    one.__enter__()
    other.__enter__()
    with redis_commands.at_most(9, because="some"):
        one.__exit__(None, None, None)
        connection.ops.sql_flush(no_style(), [])
        Office.objects.count()
        other.__exit__(None, None, None)

    assert [dict(vars(kind)) for kind in watched] == before
    assert sqlite3.connect is sqlite3.dbapi2.connect
