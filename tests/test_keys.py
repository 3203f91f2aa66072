"""What a key carries. Everything that shapes a response or its tags, and the database that the rows came from, so an entry is never served elsewhere."""

import collections
import datetime
import functools
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.utils.translation import gettext_lazy
from django_redis import get_redis_connection

from conftest import entries
from housing.freshness import fingerprint as shape
from housing.freshness import identity
from housing.freshness.checks import database_has_an_identity, settings_have_a_text
from housing.freshness.entries import ATTEMPTS
from housing.freshness.fingerprint import LEFT_OUT, fingerprint, settings_that_count, sources, text_of
from housing.freshness.identity import Unidentified
from housing.freshness.journal import journal
from housing.freshness.keys import LONG, entry_key

ROOT = Path(__file__).resolve().parent.parent

NOT_PROMISED = {
    "A running process notices another PostgreSQL database at its address before it connects again": "A hit asks no database, and a pooler such as PgBouncer "
    "keeps a process connected through the exchange. So it is with a SQLite file that is restored in place. Restart the service after a restore.",
    "A SQLite file that is overwritten in place by an older copy of itself gets other keys": "Device, inode and id stay the same, and on some file systems a "
    "new file gets the inode of the one just deleted. Move the copy into place with `mv`, restore with SQLite's `.restore`, or flush Redis.",
    "A PostgreSQL cluster whose disk is put back to an earlier snapshot gets other keys": "Without a recovery target its timeline stays the same, too. "
    "Flush Redis, or `UPDATE freshness_database SET id = gen_random_uuid()`.",
    "Every change to a package of your own changes the fingerprint": "A package counts with its source if it is an app or belongs to the settings or the URLs, "
    "and otherwise with the version that is installed. Put a version of it into any setting.",
}


# The text of a key


def test_keys_are_short_whatever_is_asked(transactional_db, warm):
    warm(search="x" * LONG)

    [entry] = entries()
    assert len(entry) < LONG


def test_a_key_shows_its_parameters_while_they_are_short():
    """A person who looks into Redis can read them."""
    assert entry_key("list", "x" * LONG, "a database").endswith(":" + "x" * LONG)
    assert "xx" not in entry_key("list", "x" * (LONG + 1), "a database")


def test_the_service_keeps_to_its_own_prefix(twenty_properties, warm, settings):
    """The server may be somebody else's too; and other specs, with a prefix of their own, may run beside this one."""
    client, ours = get_redis_connection("default"), settings.CACHES["default"]["KEY_PREFIX"].encode() + b":"
    before = set(client.scan_iter())

    warm()

    new = set(client.scan_iter()) - before
    assert any(key.startswith(ours) for key in new)
    assert [key for key in new if not key.startswith((ours, b"housing-specs-"))] == []
    assert entry_key("list", "", "a database").startswith(settings.CACHES["default"]["KEY_PREFIX"])


def test_a_cache_with_another_prefix_has_other_keys(settings):
    """Keys are remembered, but not past a change of the cache."""
    prefix, _, rest = entry_key("list", "", "a database").partition(":")
    settings.CACHES = {"default": settings.CACHES["default"] | {"KEY_PREFIX": "another"}}

    assert entry_key("list", "", "a database") == f"another:{rest}" != f"{prefix}:{rest}"


# The fingerprint


@pytest.fixture
def in_a_new_process():
    """`in_a_new_process()`: the fingerprint that a process started now would have."""

    def in_a_new_process():
        shape._hash_of_code.cache_clear()
        return fingerprint.__wrapped__()

    yield in_a_new_process
    shape._hash_of_code.cache_clear()


def test_a_deploy_with_another_fingerprint_finds_nothing(twenty_properties, warm, read, monkeypatch):
    """Otherwise the new code would serve the old code's rows until their TTL is over."""
    warm()
    monkeypatch.setattr("housing.freshness.keys.fingerprint", lambda: "another shape")

    assert read("cached").came_from == "fwd=miss; stored"


def test_a_changed_setting_of_a_library_finds_nothing(twenty_properties, warm, read, settings):
    """With this one, DRF writes decimals as numbers."""
    warm()
    settings.REST_FRAMEWORK = settings.REST_FRAMEWORK | {"COERCE_DECIMAL_TO_STRING": False}

    assert read("cached").came_from == "fwd=miss; stored"


def test_the_fingerprint_is_the_same_each_time_it_is_made(in_a_new_process):
    assert in_a_new_process() == in_a_new_process() == fingerprint()


def test_the_key_that_signs_the_links_changes_the_fingerprint(settings, in_a_new_process):
    """The new key would refuse links that the old one signed."""
    before = in_a_new_process()
    settings.SECRET_KEY = "another"

    assert in_a_new_process() != before


def another(value):
    """A value of the same type that is not equal."""
    if isinstance(value, list | tuple):
        return type(value)([*value, *(value or ["another"])])
    return value | {"another": 1} if isinstance(value, dict) else "another"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Django 6.1 deprecates some, which count as before
def test_every_setting_that_is_not_left_out_changes_the_fingerprint(settings, monkeypatch):
    before, names = shape.settings_in_force(), settings_that_count()

    for name in names:
        with monkeypatch.context() as patched:
            patched.setattr(django_settings, name, another(getattr(settings, name)))
            assert shape.settings_in_force() != before, name
    assert len(names) > 100


def test_a_setting_that_nobody_knows_changes_the_fingerprint(settings, in_a_new_process):
    """Which settings a library reads is known to that library alone."""
    before = in_a_new_process()
    settings.LISTINGS_ROUND_PRICES = True

    assert in_a_new_process() != before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Django 6.1 deprecates some, which count as before
def test_a_setting_that_is_left_out_does_not_change_the_fingerprint(settings, monkeypatch, in_a_new_process):
    """Processes of one deployment may differ in these and share their entries. Each has its reason."""
    before = in_a_new_process()

    for why, names in LEFT_OUT.items():
        assert why.endswith(".")
        for name in {*names} - {"SECRET_KEY"}:
            assert hasattr(settings, name), f"Django has no setting {name}"
            with monkeypatch.context() as patched:
                patched.setattr(django_settings, name, another(getattr(settings, name)))
                assert in_a_new_process() == before, name


def test_a_project_leaves_settings_of_its_own_out(settings, in_a_new_process):
    """The address of a server, for example, which differs between processes."""
    assert {"DATABASE_URL", "REDIS_URL"} == {*settings.FRESHNESS_IGNORED_SETTINGS}
    before = in_a_new_process()
    settings.REDIS_URL = "redis://another/0"

    assert in_a_new_process() == before


def the_example():
    """Every file of the service with code or a template."""
    return [path for path in (ROOT / "housing").rglob("*") if path.suffix in (".py", ".lua") or (path.is_file() and "templates" in path.parts)]


def test_every_source_file_of_the_service_changes_the_fingerprint(monkeypatch, in_a_new_process):
    before, read = in_a_new_process(), Path.read_bytes
    files = the_example()

    for file in files:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", lambda path, file=file: read(path) + b"# changed" * path.samefile(file))
            assert in_a_new_process() != before, file
    assert {"journal.lua", "views.py", "home.html"} <= {file.name for file in files}


def test_a_source_file_that_appears_or_disappears_changes_the_fingerprint(settings, monkeypatch, tmp_path, in_a_new_process):
    """The package of the URLs counts, though it is no app."""
    package = tmp_path / "a_project"
    (package / "templates").mkdir(parents=True)
    for name in ("__init__.py", "urls.py", "words.mo", "notes.md", "templates/page.txt"):
        (package / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    settings.ROOT_URLCONF = "a_project.urls"
    seen = [in_a_new_process()]

    for change in (
        (package / "prices.py").touch,
        (package / "urls.py").unlink,
        lambda: (package / "words.mo").write_text("another"),
        lambda: (package / "templates" / "page.txt").write_text("another"),
    ):
        change()
        seen.append(in_a_new_process())
    (package / "notes.md").write_text("another")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "left.py").touch()

    assert len(set(seen)) == len(seen)
    assert in_a_new_process() == seen[-1]


def test_templates_and_translations_outside_every_package_change_the_fingerprint(settings, tmp_path, in_a_new_process):
    (tmp_path / "page.html").touch()
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]
    before = in_a_new_process()
    (tmp_path / "page.html").write_text("another")

    assert in_a_new_process() != before


def test_urls_in_a_package_that_cannot_be_found_leave_the_fingerprint_to_the_settings(settings, in_a_new_process):
    """The URLs themselves report it, at the first request."""
    before = in_a_new_process()
    settings.ROOT_URLCONF = "no_such_package.urls"

    assert in_a_new_process() != before


def test_a_library_counts_with_its_version_and_not_with_its_source(in_a_new_process):
    """To read all of them would take seconds. Apps from site-packages are libraries."""
    packages = frozenset(shape._own_packages())

    assert packages == {"housing"}
    assert {name.partition("/")[0] for name in sources(packages)} == packages


def test_the_package_of_the_settings_counts_with_its_source_wherever_it_is_installed(settings, monkeypatch):
    """A project that is installed as a wheel may keep its version for ever."""
    monkeypatch.setattr(shape, "_is_library", lambda folder: True)

    assert set(shape._own_packages()) == {"housing"}


def test_each_version_of_an_installed_library_changes_the_fingerprint(monkeypatch, tmp_path, in_a_new_process):
    """Another orjson may write other bytes, another django-filter may select other rows. Nobody lists which libraries do."""
    installed = shape.distributions()
    for name in installed:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(ROOT)])
    before = in_a_new_process()

    for name in installed:
        (tmp_path / name).rename(tmp_path / f"another-{name}")
        assert in_a_new_process() != before, name
        (tmp_path / f"another-{name}").rename(tmp_path / name)
    assert in_a_new_process() == before
    assert {"orjson", "django_filter", "djangorestframework"} <= {name.partition("-")[0].lower() for name in installed}


def test_another_python_changes_the_fingerprint(monkeypatch, in_a_new_process):
    before = in_a_new_process()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))

    assert in_a_new_process() != before


def test_a_process_keeps_the_code_that_it_started_with(monkeypatch):
    """A deploy in place may change the files before the first request."""
    call = [sys.executable, "-c", "import django; django.setup(); from housing.freshness import fingerprint as f; print(f._hash_of_code.cache_info().currsize)"]

    assert subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"


ODD_SETTINGS = """
import datetime, functools, pathlib, re
from django.utils.translation import gettext_lazy
from housing.settings import *

class Rule:
    def __init__(self):
        self.words = {"one", "two", "three", "four"}

def outer(words):
    return lambda: words

A_SET = {"one", "two", "three", "four"}
A_DICT = {word: {word} for word in A_SET}
A_PATH, A_PATTERN, A_TIME = pathlib.Path("x"), re.compile("x", re.I), datetime.timedelta(1)
A_TRANSLATION = gettext_lazy("Home")
A_FUNCTION, A_CLOSURE, A_PARTIAL, A_METHOD = outer, outer(A_SET), functools.partial(outer, A_SET), "x".join
AN_OBJECT = Rule()
"""


def in_two_processes(folder, script, settings):
    """What a script prints in two processes, whose sets have another order."""
    (folder / "odd_settings.py").write_text(settings)
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "odd_settings", "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    call = [sys.executable, "-c", f"import django; django.setup(); from housing.freshness import fingerprint as f; {script}"]
    runs = [subprocess.run(call, env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True) for seed in ("1", "2")]
    return [run.stdout for run in runs]


def test_two_processes_make_the_same_fingerprint(tmp_path):
    """Sets have another order in each process, and objects another address."""
    first, second = in_two_processes(tmp_path, r"print(f.fingerprint(), '\n'.join(f.settings_in_force()))", ODD_SETTINGS)

    assert first == second
    assert "A_TRANSLATION=" in first
    assert "0x" not in first


def test_a_setting_that_cannot_be_compared_makes_a_fingerprint_of_this_process_alone(tmp_path):
    """It might shape a response. Within the process entries are shared, and `check` shows what to do."""
    script = "print(f.fingerprint() == f.fingerprint.__wrapped__(), f.fingerprint())"
    first, second = in_two_processes(tmp_path, script, "import threading\nfrom housing.settings import *\nA_LOCK = threading.Lock()")

    assert first.startswith("True ")
    assert first != second


def test_a_setting_that_cannot_be_compared_is_reported_by_check(settings):
    assert settings_have_a_text(None) == []
    settings.A_GENERATOR = (number for number in ())

    [message] = settings_have_a_text(None)
    assert message.id == "freshness.W007"
    assert message.msg.startswith("The setting A_GENERATOR holds a generator, which cannot be compared")
    settings.FRESHNESS_IGNORED_SETTINGS = ["A_GENERATOR"]
    assert settings_have_a_text(None) == []


class Rule:
    """An object with a state."""

    def __init__(self, word):
        self.word = word

    def check(self):
        """A method of that object."""


def holding(word):
    """A function with something inside."""
    return lambda: word


VALUES = {
    "a text": str,
    "a key of a dict": lambda word: {word: 1},
    "a value of a dict": lambda word: {1: word},
    "a set": lambda word: {word},
    "a list": lambda word: [word],
    "a tuple": lambda word: (word, 1),
    "an ordered dict": lambda word: collections.OrderedDict({word: 1}),
    "a path": Path,
    "a pattern": re.compile,
    "a pattern with flags": lambda word: re.compile("x", re.IGNORECASE * (word == "one")),
    "a time": lambda word: datetime.timedelta(len(word)),
    "a translation": gettext_lazy,
    "a partial": lambda word: functools.partial(int, word),
    "an object": Rule,
    "a method": lambda word: Rule(word).check,
    "a closure": holding,
    "a class": lambda word: {"one": str, "three": int}[word],
    "a function": lambda word: {"one": holding, "three": another}[word],
    "a module": lambda word: {"one": re, "three": os}[word],
    "a uuid": lambda word: uuid.uuid5(uuid.NAMESPACE_DNS, word),
}
"""What may stand in a setting, made of a word."""


@pytest.mark.parametrize("kind", VALUES)
def test_the_text_of_a_setting_says_all_that_distinguishes_it(kind):
    """Equal values have one text, different values have two, and no address is in it."""
    make = VALUES[kind]

    assert text_of(make("one")) == text_of(make("one")) != text_of(make("three"))
    assert " 0x" not in text_of(make("one"))


def test_the_text_of_a_setting_tells_types_apart_and_ends():
    endless = []
    endless.append(endless)

    assert len({text_of(value) for value in ("1", 1, 1.0, True, b"1", None, ["1"], ("1",), {"1"}, endless)}) == 10


# The identity of the database


def raw(name):
    """A connection of the driver's own to the database of this name."""
    if connection.vendor == "sqlite":
        return closing(sqlite3.connect(name, isolation_level=None))
    parts = {key.lower(): value for key, value in connection.settings_dict.items() if key in ("HOST", "PORT", "USER", "PASSWORD")}
    return psycopg.connect(**parts, dbname=name, autocommit=True)


def order(*statements):
    """On the server, from another database."""
    with raw(urlsplit(os.environ["DATABASE_URL"]).path.lstrip("/")) as server:
        for statement in statements:
            server.execute(statement)


class Databases:
    """Copies of the specs' database and moves them, as an operator does while nobody is connected."""

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
    """`with replaced("UPDATE …"):` a copy of the database, changed by SQL that no application sent, stands at its address."""
    databases = Databases()

    @contextmanager
    def replaced(*statements):
        databases.move(databases.name, kept := databases.name + "_kept")
        try:
            databases.copy(kept, databases.name)
            with raw(databases.name) as copy:
                for statement in statements:
                    copy.execute(statement)
            yield
        finally:
            databases.drop(databases.name)
            databases.move(kept, databases.name)

    return replaced


@pytest.fixture
def second(transactional_db, monkeypatch):
    """`second("UPDATE …")`: the name of a second database, a copy changed by SQL; `second.connect(name)` sets the service's address."""
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
    """`connect()`: the process opens a connection, as one that was restarted does at its first miss, and a running one whenever it needs the database."""
    return functools.partial(read, "naive")


def test_another_database_at_the_same_address_finds_nothing(home, warm, read, replaced, connect):
    """The same service, Redis, and URL: the first database's rows would be served for 24 hours."""
    before = warm()

    with replaced(CHEAPER, "UPDATE freshness_database SET id = 'f3b1a8a1ac0a4a7f8a5b3b1f8a1c0a4a'"):
        connect()
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=miss; stored", read("optimized").body)
        assert response.rows[0]["price"] == "1.00"
        assert read("cached").came_from == "hit"

    connect()
    response = read("cached")
    assert (response.came_from, response.body) == ("hit", before)


def test_a_copy_of_the_database_at_the_same_address_finds_nothing(home, warm, read, replaced, connect):
    """A backup put in its place carries its id, too, and the rows of an earlier day."""
    warm()

    with replaced(CHEAPER):
        connect()
        response = read("cached")
        assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


def test_another_id_in_the_database_makes_all_keys_new(home, warm, read, connect):
    """An operator who restored a database in a way that nothing tells can say so."""
    warm()
    connection.close()
    with raw(connection.settings_dict["NAME"]) as database:
        database.execute("UPDATE freshness_database SET id = 'f3b1a8a1ac0a4a7f8a5b3b1f8a1c0a4a'")
    connect()

    assert read("cached").came_from == "fwd=miss; stored"


def test_a_second_database_of_the_same_service_finds_nothing(home, warm, read, second, connect):
    """Two deployments may share a Redis and a secret key by mistake."""
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


def test_the_newest_connection_of_a_process_decides_for_all_its_threads(home, read, second, connect, elsewhere):
    """A thread may still be connected to a database that is no longer at the address."""
    cheaper = second(CHEAPER)
    connect()
    second.connect(cheaper)
    elsewhere(connect)

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


def test_a_connection_that_turns_out_to_lead_elsewhere_stores_nothing_under_the_old_key(home, read, second, connect, monkeypatch):
    """The database is exchanged after the lookup and before the SELECT."""
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
def test_a_file_restored_by_sqlite_itself_finds_nothing(home, warm, read, connect):
    """Its backup API overwrites the file in place. (Only SQLite has it.)"""
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
    """`exchange()`: a copy of the file stands at its address, with other rows."""
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
def test_a_file_exchanged_under_an_open_connection_is_opened_again(home, warm, read, exchange):
    """A process may keep its connections for hours. (On SQLite a look at the file is enough to know.)"""
    warm()
    connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    exchange()

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


@pytest.mark.only("embedded")
def test_a_file_exchanged_while_it_is_opened_stores_nothing_under_the_old_key(home, read, exchange, connect, monkeypatch):
    """The file that was looked at is not the one that was opened. (On PostgreSQL there is no file to look at.)"""
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
def test_a_file_that_is_away_leaves_warm_pages_warm(home, warm, read):
    """As a server that is away does. (On PostgreSQL there is no file to look at.)"""
    warm()
    connection.close()
    name = Path(connection.settings_dict["NAME"])
    name.rename(kept := name.with_suffix(".kept"))
    try:
        assert read("cached").came_from == "hit"
    finally:
        kept.rename(name)


@pytest.mark.only("real")
def test_a_database_dropped_and_made_again_with_the_same_name_finds_nothing(home, warm, read, second, connect):
    """Its id may be the same, if it was restored from a dump. (SQLite has files instead.)"""
    cheaper = second()
    second.connect(cheaper)
    connect()
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
def test_a_dump_restored_into_the_same_database_finds_nothing(home, warm, read, second, connect, restore):
    """It brings the id that it was made with. (SQLite has files instead.)"""
    name = second()
    second.connect(name)
    connect()
    warm()
    connection.close()
    with raw(name) as database:
        for statement in (CHEAPER, *restore):
            database.execute(statement)
    connect()

    response = read("cached")
    assert (response.came_from, response.rows[0]["price"]) == ("fwd=miss; stored", "1.00")


@pytest.mark.only("real")
def test_a_role_that_may_not_ask_for_the_cluster_still_has_an_identity(home, warm, read, monkeypatch):
    """Its entries tell databases of one cluster apart, and `check --database` shows what is missing. (SQLite has no roles.)"""
    connection.close()
    with monkeypatch.context() as patched:
        patched.setattr("housing.freshness.postgresql.base.CLUSTER", "SELECT pg_read_file('/no/such/file')")
        warm()
        [message] = database_has_an_identity(None, databases=["default"])
    assert message.id == "freshness.W006"
    assert "does not tell which cluster it is in" in message.msg

    connection.close()
    connection.ensure_connection()
    assert database_has_an_identity(None, databases=["default"]) == []


def test_a_database_without_an_identity_is_read_without_the_cache(home, warm, read, replaced, connect, caplog):
    """It was not migrated, or the role may not read the table. Another database could be behind the same address."""
    warm()

    with replaced("DROP TABLE freshness_database"):
        connect()
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=bypass; detail=unverified", read("optimized").body)
        [line] = caplog.messages
        assert line.startswith("Answered from the database: The identity of the database 'default' cannot be read: ")
        assert line.endswith(". Run `manage.py migrate`, and grant SELECT on the table to the role of the service.")

        [message] = database_has_an_identity(None, databases=["default"])
        assert message.id == "freshness.W005"
        assert message.msg.startswith("Responses are not cached. The identity of the database 'default' cannot be read: ")
        assert database_has_an_identity(None) == []

        home.save()
        connection.connection.execute("CREATE TABLE freshness_database (id char(32))")
        assert read("cached").came_from == "fwd=bypass; detail=unverified"
        connection.connection.execute("INSERT INTO freshness_database VALUES ('an id')")
        assert [read("cached").came_from for _ in range(2)] == ["fwd=miss; stored", "hit"]
        assert database_has_an_identity(None, databases=["default"]) == []


def test_a_database_that_was_never_migrated_is_no_problem_yet(replaced):
    """`migrate` checks before it migrates."""
    with replaced("DROP TABLE freshness_database", "DROP TABLE django_migrations"):
        assert database_has_an_identity(None, databases=["default"]) == []


def test_a_database_that_is_unreachable_is_no_problem_of_its_identity(transactional_db, monkeypatch):
    """Other checks report the address."""

    def refuse(*_):
        raise OperationalError("the database is away")

    connection.close()
    identity._known.clear()
    with monkeypatch.context() as patched:
        patched.setattr(type(connections["default"]), "get_new_connection", refuse)
        assert database_has_an_identity(None, databases=["default"]) == []


def test_a_connection_without_autocommit_is_not_left_in_a_transaction(transactional_db, monkeypatch):
    """Its first SELECT would be answered from the snapshot of ours."""
    connection.close()
    with monkeypatch.context() as patched:
        patched.setitem(connection.settings_dict, "AUTOCOMMIT", False)
        connection.ensure_connection()
        assert not connection.begun
    connection.close()


def test_a_database_in_memory_has_an_identity_when_it_has_an_id(transactional_db, monkeypatch):
    """Django never closes its connection, so the id is read again on the same one."""
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


def test_the_identity_is_read_once_for_each_connection_and_is_no_query(twenty_properties, read, monkeypatch, queries):
    wrapper = type(connections["default"])
    times, facts = [], wrapper.facts
    monkeypatch.setattr(wrapper, "facts", lambda self: times.append(self) or facts(self))
    connection.close()

    with queries.exactly(1, because="a cold page is one SELECT, on a new connection, too"):
        read("cached")
    assert len(times) == 1
    for page in ("cached", "cached?page_size=5", "naive"):
        read(page)
    assert len(times) == 1
    connection.close()
    read("cached?page_size=6")
    assert len(times) == 2


def test_each_database_is_migrated_to_an_id_of_its_own(transactional_db, tmp_path, monkeypatch):
    """SQLite files are enough to see it."""
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
    """`dumpdata | loaddata` would copy it, and `flush` would leave a database without one."""
    call_command("dumpdata", "--all", stdout=(dump := StringIO()))
    call_command("sqlflush", stdout=(flush := StringIO()))

    assert "contenttypes.contenttype" in dump.getvalue()
    assert "freshness" not in dump.getvalue().lower()
    assert "housing_property" in flush.getvalue()
    assert "freshness_database" not in flush.getvalue()


@pytest.fixture(autouse=True)
def no_identity_left():
    """Another chapter connects to the specs' own database."""
    yield
    identity._known.clear()
