"""The identity of the database. A key contains it, so an entry is never served after the database was replaced, restored or copied."""

import functools
import os
import shutil
import sqlite3
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections

from housing.freshness import identity
from housing.freshness.checks import database_has_an_identity
from housing.freshness.entries import ATTEMPTS
from housing.freshness.identity import Unidentified
from housing.freshness.journal import journal
from tests.fixtures.cache import entries

NOT_PROMISED = {
    "A running process notices another PostgreSQL database at its address before it reconnects": "A hit queries no database, and a pooler such as PgBouncer "
    "keeps the process connected while the database is replaced. A SQLite file restored in place goes unnoticed, too. Restart the service after a restore.",
    "A SQLite file that is overwritten in place by an older copy of itself gets other keys": "Device, inode and id stay the same, and on some file systems a "
    "new file gets the inode of the one just deleted. Move the copy into place with `mv`, restore with SQLite's `.restore`, or flush Redis.",
    "A PostgreSQL cluster whose disk is reset to an earlier snapshot gets other keys": "Without a recovery target its timeline stays the same. "
    "Flush Redis, or run `UPDATE freshness_database SET id = gen_random_uuid()`.",
}


def raw(name):
    """A connection of the driver, which bypasses Django, to the database with this name."""
    if connection.vendor == "sqlite":
        return closing(sqlite3.connect(name, isolation_level=None))
    parts = {key.lower(): value for key, value in connection.settings_dict.items() if key in ("HOST", "PORT", "USER", "PASSWORD")}
    return psycopg.connect(**parts, dbname=name, autocommit=True)


def order(*statements):
    """Execute statements on the server, connected to another database."""
    with raw(urlsplit(os.environ["DATABASE_URL"]).path.lstrip("/")) as server:
        for statement in statements:
            server.execute(statement)


class Databases:
    """Copies, moves and drops databases, as an operator does while no process is connected."""

    def __init__(self):
        self.name = str(connection.settings_dict["NAME"])

    def copy(self, old, new):
        connections.close_all()
        if connection.vendor == "sqlite":
            shutil.copyfile(old, new)
        else:
            order(f'CREATE DATABASE "{new}" TEMPLATE "{old}"')

    def move(self, old, new):
        connections.close_all()
        if connection.vendor == "sqlite":
            Path(old).rename(new)
        else:
            order(f'ALTER DATABASE "{old}" RENAME TO "{new}"')

    def drop(self, name):
        connections.close_all()
        if connection.vendor == "sqlite":
            Path(name).unlink()
        else:
            order(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def replaced(transactional_db):
    """`with replaced("UPDATE …"):` replace the database with a copy that was changed by SQL outside the application."""
    databases = Databases()

    @contextmanager
    def replaced(*statements):
        databases.move(databases.name, kept := databases.name + "_kept")
        try:
            databases.copy(kept, databases.name)
            with raw(databases.name) as copy:
                for statement in (*statements, "DELETE FROM freshness_outbox"):  # a restore writes none; these are writes of another program
                    copy.execute(statement)
            yield
        finally:
            databases.drop(databases.name)
            databases.move(kept, databases.name)

    return replaced


@pytest.fixture
def second(transactional_db, monkeypatch):
    """`second("UPDATE …")`: create a copy of the database, changed by SQL, and return its name. `second.connect(name)` lets the service use it."""
    databases, made = Databases(), []

    def second(*statements):
        made.append(f"{databases.name}_{len(made)}")
        databases.copy(databases.name, made[-1])
        with raw(made[-1]) as copy:
            for statement in statements:
                copy.execute(statement)
        return made[-1]

    second.connect = functools.partial(connection.settings_dict.__setitem__, "NAME")
    second.first = databases.name
    yield second
    second.connect(databases.name)
    for name in made:
        databases.drop(name)


CHEAPER = "UPDATE housing_property SET price = 1"


@pytest.fixture
def connect(read):
    """`connect()`: let the process open a database connection, as it does at the next read that needs the database."""
    return functools.partial(read, "naive")


def test_another_database_at_the_same_address_causes_a_miss(home, warm, read, replaced, connect, verify):
    """Service, Redis and URL are the same, so the first database's rows would be served for 24 hours."""
    before = warm()

    with replaced(CHEAPER, "UPDATE freshness_database SET id = 'f3b1a8a1ac0a4a7f8a5b3b1f8a1c0a4a'"):
        connect()
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=miss; stored", read("optimized").body)
        assert response.rows[0]["price"] == "1.00"
        verify()
        assert read("cached").came_from == "hit"

    connect()
    response = read("cached")
    assert (response.came_from, response.body) == ("hit", before)


def test_a_copy_of_the_database_at_the_same_address_causes_a_miss(home, warm, read, replaced, connect):
    """A restored backup has the same id, and older rows."""
    warm()

    with replaced(CHEAPER):
        connect()
        response = read("cached")
        assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


def test_a_new_id_in_the_database_changes_all_keys(home, warm, read, connect):
    """An operator can change the id after a restore that cannot be detected."""
    warm()
    connection.close()
    with raw(connection.settings_dict["NAME"]) as database:
        database.execute("UPDATE freshness_database SET id = 'f3b1a8a1ac0a4a7f8a5b3b1f8a1c0a4a'")
    connect()

    assert read("cached").came_from == "fwd=miss; stored"


def test_a_second_database_of_the_same_service_causes_a_miss(home, warm, read, second, connect):
    """Two deployments may share Redis and a secret key by mistake."""
    before = warm()
    connection.close()
    second.connect(second(CHEAPER))
    connect()

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")
    connection.close()
    second.connect(second.first)
    connect()
    assert read("cached").body == before


def test_the_newest_connection_of_a_process_sets_the_identity_for_all_its_threads(home, read, second, connect, elsewhere):
    """Another thread may still be connected to a database that has been replaced."""
    cheaper = second(CHEAPER)
    connect()
    second.connect(cheaper)
    elsewhere(connect)

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


def test_a_database_replaced_during_a_read_stores_nothing_under_the_old_key(home, read, second, connect, monkeypatch):
    """Here the database is replaced between the lookup and the SELECT."""
    cheaper = second(CHEAPER)
    connect()
    connection.close()
    lookup, looked = journal.lookup, []

    def exchange(key, *args, **kwargs):
        found = lookup(key, *args, **kwargs)
        looked.append(key)
        second.connect(cheaper)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(journal, "lookup", exchange)
        response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")
    assert len(set(looked)) == len(looked) == 2 <= ATTEMPTS
    assert [entry.decode() for entry in entries()] == looked[1:]


@pytest.mark.only("embedded")
def test_a_file_restored_from_a_backup_causes_a_miss(home, warm, read, connect):
    """SQLite's backup API overwrites the file in place. (Only SQLite has this API.)"""
    name = connection.settings_dict["NAME"]
    connection.close()
    with raw(name) as file, raw(":memory:") as backup:
        file.backup(backup)
        read("cached")
        home.price = 1
        home.save()
        warm()
        connection.close()
        backup.backup(file)
    connect()

    assert read("cached").came_from == "fwd=miss; stored"
    assert read("cached").body == read("optimized").body


@pytest.fixture
def exchange(second):
    """`exchange()`: replace the SQLite file with a copy that has other rows."""
    name, copy, kept = second.first, second(CHEAPER), second.first + "_kept"

    def exchange():
        Path(name).rename(kept)
        Path(copy).rename(name)

    def put_back():
        connection.close()
        Path(name).rename(copy)
        Path(kept).rename(name)

    exchange.back = put_back
    yield exchange
    if Path(kept).exists():
        put_back()


@pytest.mark.only("embedded")
def test_a_file_replaced_under_an_open_connection_is_opened_again(home, warm, read, exchange):
    """A process may keep its connections for hours. (Only SQLite has a file whose inode can be compared.)"""
    warm()
    connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    exchange()

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


@pytest.mark.only("embedded")
def test_a_file_replaced_while_it_is_opened_stores_nothing_under_the_old_key(home, read, exchange, connect, monkeypatch):
    """The file that was identified is not the one that was opened. (Only SQLite has a file.)"""
    connect()
    connection.close()
    wrapper, steps = type(connections["default"]), iter([exchange])
    open_file = wrapper.get_new_connection

    def exchange_and_open(self, parameters):
        for step in steps:
            step()
        return open_file(self, parameters)

    monkeypatch.setattr(wrapper, "get_new_connection", exchange_and_open)
    assert read("cached").rows[0]["price"] == "1.00"
    exchange.back()

    assert read("cached").body == read("optimized").body


@pytest.mark.only("embedded")
def test_a_missing_file_leaves_warm_pages_warm(home, warm, read):
    """A hit does not need the database. (Only SQLite has a file.)"""
    warm()
    connection.close()
    name = Path(connection.settings_dict["NAME"])
    name.rename(kept := name.with_suffix(".kept"))
    try:
        assert read("cached").came_from == "hit"
    finally:
        kept.rename(name)


@pytest.mark.only("real")
def test_a_database_recreated_with_the_same_name_causes_a_miss(home, warm, read, second, connect, verify):
    """After a restore from a dump its id may be the same. (SQLite has files instead.)"""
    cheaper = second()
    second.connect(cheaper)
    connect()
    verify()
    warm()
    Databases().drop(cheaper)
    Databases().copy(second.first, cheaper)
    with raw(cheaper) as copy:
        copy.execute(CHEAPER)
    connect()

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


@pytest.mark.only("real")
@pytest.mark.parametrize(
    "restore",
    [
        ("CREATE TABLE copied AS SELECT * FROM freshness_database", "DROP TABLE freshness_database", "ALTER TABLE copied RENAME TO freshness_database"),
        ("CREATE TABLE copied AS TABLE freshness_database", "TRUNCATE freshness_database", "INSERT INTO freshness_database TABLE copied"),
    ],
    ids=["--clean", "--data-only"],
)
def test_a_dump_restored_into_the_same_database_causes_a_miss(home, warm, read, second, connect, verify, restore):
    """A dump contains the id of the time when it was made. (SQLite has files instead.)"""
    name = second()
    second.connect(name)
    connect()
    verify()
    warm()
    connection.close()
    with raw(name) as database:
        for statement in (CHEAPER, *restore):
            database.execute(statement)
    connect()

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


@pytest.mark.only("real")
def test_a_role_that_cannot_query_the_cluster_still_has_an_identity(home, warm, verify, monkeypatch):
    """Keys still distinguish the databases of a cluster, and `check --database` reports the missing permission. (SQLite has no roles.)"""
    connection.close()
    with monkeypatch.context() as patched:
        patched.setattr("housing.freshness.postgresql.base.CLUSTER", "SELECT pg_read_file('/no/such/file')")
        verify()
        warm()
        [message] = database_has_an_identity(None, databases=["default"])
    assert message.id == "freshness.W006"
    assert message.msg.startswith("The cluster of the database 'default' is unknown (")

    connection.close()
    connection.ensure_connection()
    assert database_has_an_identity(None, databases=["default"]) == []


def test_a_database_without_an_identity_is_read_without_the_cache(home, warm, read, replaced, connect, caplog, verify):
    """The database was not migrated, or the role cannot read the table. Without the id, another database at this address would go unnoticed."""
    warm()

    with replaced("DROP TABLE freshness_database"):
        connect()
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=bypass; detail=unverified", read("optimized").body)
        [line] = caplog.messages
        assert line.startswith("Served from the database: The identity of the database 'default' cannot be read: ")
        assert line.endswith(". Run `manage.py migrate`, and grant SELECT on the table to the role of the service.")

        [message] = database_has_an_identity(None, databases=["default"])
        assert message.id == "freshness.W005"
        assert message.msg.startswith("Responses are not cached. The identity of the database 'default' cannot be read: ")
        assert database_has_an_identity(None) == []

        home.save()
        connection.connection.execute("CREATE TABLE freshness_database (id char(32))")
        assert read("cached").came_from == "fwd=bypass; detail=unverified"
        connection.connection.execute("INSERT INTO freshness_database VALUES ('an id')")
        assert read("cached").came_from == "fwd=miss; stored"
        verify()
        assert read("cached").came_from == "hit"
        assert database_has_an_identity(None, databases=["default"]) == []


def test_a_database_that_was_never_migrated_passes_the_check_of_its_identity(replaced):
    """`migrate` runs the checks before it creates the table."""
    with replaced("DROP TABLE freshness_database", "DROP TABLE django_migrations"):
        assert database_has_an_identity(None, databases=["default"]) == []


def test_an_unreachable_database_is_not_reported_as_one_without_an_identity(transactional_db, monkeypatch):
    """Other checks report an unreachable database."""

    def refuse(*_):
        raise OperationalError("the database is unreachable")

    connection.close()
    identity._known.clear()
    with monkeypatch.context() as patched:
        patched.setattr(type(connections["default"]), "get_new_connection", refuse)
        assert database_has_an_identity(None, databases=["default"]) == []


def test_a_connection_without_autocommit_is_not_left_in_a_transaction(transactional_db, monkeypatch):
    """Otherwise the first SELECT of a request would read the snapshot that the identity was read in."""
    connection.close()
    with monkeypatch.context() as patched:
        patched.setitem(connection.settings_dict, "AUTOCOMMIT", False)
        connection.ensure_connection()
        assert not connection.begun
    connection.close()


def test_a_database_in_memory_has_an_identity_once_it_has_an_id(transactional_db, monkeypatch):
    """Django never closes the connection to an in-memory database, so the id is read again on the same one."""
    memory = {"ENGINE": "housing.freshness.sqlite3", "NAME": ":memory:", "OPTIONS": {}}
    monkeypatch.setitem(connections.settings, "memory", connections.settings["default"] | memory)
    try:
        with pytest.raises(Unidentified, match="no such table: freshness_database"):
            connections["memory"].database_identity()
        connections["memory"].connection.execute("CREATE TABLE freshness_database (id)")
        with pytest.raises(Unidentified, match="The table freshness_database has no row"):
            connections["memory"].database_identity()
        connections["memory"].connection.execute("INSERT INTO freshness_database VALUES (1)")
        assert connections["memory"].database_identity() == connections["memory"].database_identity() != ""
    finally:
        connections["memory"].connection.close()
        del connections["memory"]


def test_the_identity_is_read_once_for_each_connection_and_is_not_counted_as_a_query(twenty_properties, read, monkeypatch, queries):
    wrapper = type(connections["default"])
    times, facts = [], wrapper.facts
    monkeypatch.setattr(wrapper, "facts", lambda self: times.append(self) or facts(self))
    connection.close()

    with queries.exactly(1, because="a cold page is one SELECT, even on a new connection"):
        read("cached")
    assert len(times) == 1
    for page in ("cached", "cached?page_size=5", "naive"):
        read(page)
    assert len(times) == 1
    connection.close()
    read("cached?page_size=6")
    assert len(times) == 2


def test_the_migration_gives_each_database_its_own_id(transactional_db, tmp_path, monkeypatch):
    """Otherwise two databases could share entries. The spec migrates two SQLite files."""
    ids = set()
    for name in ("one", "two"):
        file = str(tmp_path / name)
        monkeypatch.setitem(connections.settings, name, connections.settings["default"] | {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": {}})
        call_command("migrate", "freshness", database=name, verbosity=0)
        connections[name].close()
        del connections[name]
        with closing(sqlite3.connect(file)) as made:
            ids |= set(made.execute("SELECT id FROM freshness_database"))

    assert len(ids) == 2


def test_the_id_is_neither_dumped_nor_flushed(transactional_db):
    """`dumpdata | loaddata` would copy the id to another database, and `flush` would delete it."""
    call_command("dumpdata", "--all", stdout=(dump := StringIO()))
    call_command("sqlflush", stdout=(flush := StringIO()))

    assert "contenttypes.contenttype" in dump.getvalue()
    assert "freshness" not in dump.getvalue().lower()
    assert "housing_property" in flush.getvalue()
    assert "freshness_database" not in flush.getvalue()


@pytest.fixture(autouse=True)
def no_identity_left():
    """Forget the identities after each spec, because other chapters use the specs' original database."""
    yield
    identity._known.clear()
