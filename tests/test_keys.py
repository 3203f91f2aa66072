"""Cache keys. A key depends on everything that affects a response or its tags, and on the database, so an entry is never served to another deployment."""

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
    "A running process notices another PostgreSQL database at its address before it reconnects": "A hit queries no database, and a pooler such as PgBouncer "
    "keeps the process connected while the database is replaced. A SQLite file restored in place goes unnoticed, too. Restart the service after a restore.",
    "A SQLite file that is overwritten in place by an older copy of itself gets other keys": "Device, inode and id stay the same, and on some file systems a "
    "new file gets the inode of the one just deleted. Move the copy into place with `mv`, restore with SQLite's `.restore`, or flush Redis.",
    "A PostgreSQL cluster whose disk is reset to an earlier snapshot gets other keys": "Without a recovery target its timeline stays the same. "
    "Flush Redis, or run `UPDATE freshness_database SET id = gen_random_uuid()`.",
    "Every change to a package of your own changes the fingerprint": "The source of a package is hashed if it is an app, or contains the settings or the URLs. "
    "Otherwise only its installed version counts. Add the version of such a package to any setting.",
}


# The format of a key


def test_keys_are_short_even_for_long_query_strings(transactional_db, warm):
    """A client controls the length of its parameters, and must not control the memory that keys take."""
    warm(search="x" * LONG)

    [entry] = entries()
    assert len(entry) < LONG


def test_a_key_shows_its_parameters_if_they_are_short():
    """A developer can read them in Redis."""
    assert entry_key("list", "x" * LONG, "a database").endswith(":" + "x" * LONG)
    assert "xx" not in entry_key("list", "x" * (LONG + 1), "a database")


def test_the_service_uses_only_keys_with_its_prefix(twenty_properties, warm, settings):
    """Others may use the same server, and specs with other prefixes may run at the same time."""
    client, ours = get_redis_connection("default"), settings.CACHES["default"]["KEY_PREFIX"].encode() + b":"
    before = set(client.scan_iter())

    warm()

    new = set(client.scan_iter()) - before
    assert any(key.startswith(ours) for key in new)
    assert [key for key in new if not key.startswith((ours, b"housing-specs-"))] == []
    assert entry_key("list", "", "a database").startswith(settings.CACHES["default"]["KEY_PREFIX"])


def test_a_cache_with_another_prefix_has_other_keys(settings):
    """The prefix is kept in memory only until the cache's settings change."""
    prefix, _, rest = entry_key("list", "", "a database").partition(":")
    settings.CACHES = {"default": settings.CACHES["default"] | {"KEY_PREFIX": "another"}}

    assert entry_key("list", "", "a database") == f"another:{rest}" != f"{prefix}:{rest}"


# The fingerprint


@pytest.fixture
def in_a_new_process():
    """`in_a_new_process()`: the fingerprint of a process that starts now."""

    def in_a_new_process():
        shape._hash_of_code.cache_clear()
        return fingerprint.__wrapped__()

    yield in_a_new_process
    shape._hash_of_code.cache_clear()


def test_a_deployment_with_another_fingerprint_finds_no_entry(twenty_properties, warm, read, monkeypatch):
    """Otherwise the new code would serve the old code's responses until their TTL expires."""
    warm()
    monkeypatch.setattr("housing.freshness.keys.fingerprint", lambda: "another fingerprint")

    assert read("cached").came_from == "fwd=miss; stored"


def test_a_changed_setting_of_a_library_causes_a_miss(twenty_properties, warm, read, settings):
    """With this setting, DRF writes decimals as numbers."""
    warm()
    settings.REST_FRAMEWORK = settings.REST_FRAMEWORK | {"COERCE_DECIMAL_TO_STRING": False}

    assert read("cached").came_from == "fwd=miss; stored"


def test_the_fingerprint_is_the_same_each_time(in_a_new_process):
    """Otherwise a restart would empty the cache."""
    assert in_a_new_process() == in_a_new_process() == fingerprint()


def test_another_secret_key_changes_the_fingerprint(settings, in_a_new_process):
    """With the new key, the service would refuse the old key's cursors in cached links."""
    before = in_a_new_process()
    settings.SECRET_KEY = "another"

    assert in_a_new_process() != before


def another(value):
    """A different value of the same type."""
    if isinstance(value, list | tuple):
        return type(value)([*value, *(value or ["another"])])
    return value | {"another": 1} if isinstance(value, dict) else "another"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Django 6.1 deprecates some, which still count
def test_every_setting_that_is_not_ignored_changes_the_fingerprint(settings, monkeypatch):
    """Any setting may change a response, so all of them count unless there is a reason against it."""
    before, names = shape.settings_in_force(), settings_that_count()

    for name in names:
        with monkeypatch.context() as patched:
            patched.setattr(django_settings, name, another(getattr(settings, name)))
            assert shape.settings_in_force() != before, name
    assert len(names) > 100


def test_an_unknown_setting_changes_the_fingerprint(settings, in_a_new_process):
    """Only a library itself knows which settings it reads."""
    before = in_a_new_process()
    settings.LISTINGS_ROUND_PRICES = True

    assert in_a_new_process() != before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Django 6.1 deprecates some, which still count
def test_an_ignored_setting_does_not_change_the_fingerprint(settings, monkeypatch, in_a_new_process):
    """The processes of a deployment may differ in these settings and share entries. The code gives a reason for each."""
    before = in_a_new_process()

    for why, names in LEFT_OUT.items():
        assert why.endswith(".")
        for name in {*names} - {"SECRET_KEY"}:
            assert hasattr(settings, name), f"Django has no setting {name}"
            with monkeypatch.context() as patched:
                patched.setattr(django_settings, name, another(getattr(settings, name)))
                assert in_a_new_process() == before, name


def test_a_project_can_ignore_settings_of_its_own(settings, in_a_new_process):
    """The address of a server, for example, may differ between processes."""
    assert {"DATABASE_URL", "REDIS_URL"} == {*settings.FRESHNESS_IGNORED_SETTINGS}
    before = in_a_new_process()
    settings.REDIS_URL = "redis://another/0"

    assert in_a_new_process() == before


def the_example():
    """Every source file and template of the service."""
    return [path for path in (ROOT / "housing").rglob("*") if path.suffix in (".py", ".lua") or (path.is_file() and "templates" in path.parts)]


def test_every_source_file_of_the_service_changes_the_fingerprint(monkeypatch, in_a_new_process):
    """Any change of the code may change a response."""
    before, read = in_a_new_process(), Path.read_bytes
    files = the_example()

    for file in files:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", lambda path, file=file: read(path) + b"# changed" * path.samefile(file))
            assert in_a_new_process() != before, file
    assert {"journal.lua", "views.py", "home.html"} <= {file.name for file in files}


def test_a_source_file_that_appears_or_disappears_changes_the_fingerprint(settings, monkeypatch, tmp_path, in_a_new_process):
    """The package of the URLs counts, although it is not an app."""
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
    """They may be part of a response, and are in no app."""
    (tmp_path / "page.html").touch()
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]
    before = in_a_new_process()
    (tmp_path / "page.html").write_text("another")

    assert in_a_new_process() != before


def test_a_missing_url_package_does_not_break_the_fingerprint(settings, in_a_new_process):
    """Django reports the missing package at the first request."""
    before = in_a_new_process()
    settings.ROOT_URLCONF = "no_such_package.urls"

    assert in_a_new_process() != before


def test_the_source_of_a_library_is_not_hashed(in_a_new_process):
    """Reading the source of all libraries would take seconds. Apps in site-packages are libraries, too."""
    packages = frozenset(shape._own_packages())

    assert packages == {"housing"}
    assert {name.partition("/")[0] for name in sources(packages)} == packages


def test_the_source_of_the_settings_package_is_hashed_wherever_it_is_installed(settings, monkeypatch):
    """A project that is installed as a wheel may never change its version."""
    monkeypatch.setattr(shape, "_is_library", lambda folder: True)

    assert set(shape._own_packages()) == {"housing"}


def test_each_version_of_an_installed_library_changes_the_fingerprint(monkeypatch, tmp_path, in_a_new_process):
    """Another orjson may write other bytes, and another django-filter may select other rows. No list says which libraries affect responses."""
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


def test_another_version_of_the_interpreter_changes_the_fingerprint(monkeypatch, in_a_new_process):
    """Another version may format the same value differently."""
    before = in_a_new_process()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))

    assert in_a_new_process() != before


def test_a_process_hashes_its_code_when_it_starts(monkeypatch):
    """A deployment that overwrites the files may change them before the first request."""
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
    """The output of a script in two processes with different hash seeds, and so with different orders of sets."""
    (folder / "odd_settings.py").write_text(settings)
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "odd_settings", "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    call = [sys.executable, "-c", f"import django; django.setup(); from housing.freshness import fingerprint as f; {script}"]
    runs = [subprocess.run(call, env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True) for seed in ("1", "2")]
    return [run.stdout for run in runs]


def test_two_processes_compute_the_same_fingerprint(tmp_path):
    """The order of sets and the addresses of objects differ between processes."""
    first, second = in_two_processes(tmp_path, r"print(f.fingerprint(), '\n'.join(f.settings_in_force()))", ODD_SETTINGS)

    assert first == second
    assert "A_TRANSLATION=" in first
    assert "0x" not in first


def test_a_setting_that_cannot_be_compared_gives_each_process_its_own_fingerprint(tmp_path):
    """The setting might affect responses. Entries are shared only within the process, and `check` shows what to do."""
    script = "print(f.fingerprint() == f.fingerprint.__wrapped__(), f.fingerprint())"
    first, second = in_two_processes(tmp_path, script, "import threading\nfrom housing.settings import *\nA_LOCK = threading.Lock()")

    assert first.startswith("True ")
    assert first != second


def test_a_setting_that_cannot_be_compared_is_reported_by_check(settings):
    """Without the report, a low hit rate would be hard to explain."""
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
    """A closure over `word`."""
    return lambda: word


VALUES = {
    "a string": str,
    "a key of a dict": lambda word: {word: 1},
    "a value of a dict": lambda word: {1: word},
    "a set": lambda word: {word},
    "a list": lambda word: [word],
    "a tuple": lambda word: (word, 1),
    "an ordered dict": lambda word: collections.OrderedDict({word: 1}),
    "a path": Path,
    "a pattern": re.compile,
    "a pattern with flags": lambda word: re.compile("x", re.IGNORECASE * (word == "one")),
    "a timedelta": lambda word: datetime.timedelta(len(word)),
    "a translation": gettext_lazy,
    "a partial": lambda word: functools.partial(int, word),
    "an object": Rule,
    "a method": lambda word: Rule(word).check,
    "a closure": holding,
    "a class": lambda word: {"one": str, "three": int}[word],
    "a function": lambda word: {"one": holding, "three": another}[word],
    "a module": lambda word: {"one": re, "three": os}[word],
    "a UUID": lambda word: uuid.uuid5(uuid.NAMESPACE_DNS, word),
}
"""Kinds of setting values, each made from a word."""


@pytest.mark.parametrize("kind", VALUES)
def test_the_text_of_a_setting_distinguishes_different_values(kind):
    """Equal values have equal texts, different values have different texts, and no text contains a memory address."""
    make = VALUES[kind]

    assert text_of(make("one")) == text_of(make("one")) != text_of(make("three"))
    assert " 0x" not in text_of(make("one"))


def test_the_text_of_a_setting_distinguishes_types_and_ends_recursion():
    """`1` and `"1"` may change a response in different ways, and a list may contain itself."""
    endless = []
    endless.append(endless)

    assert len({text_of(value) for value in ("1", 1, 1.0, True, b"1", None, ["1"], ("1",), {"1"}, endless)}) == 10


# The identity of the database


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
                for statement in statements:
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
        verify()
        response = read("cached")
        assert (response.came_from, response.body) == ("fwd=miss; stored", read("optimized").body)
        assert response.rows[0]["price"] == "1.00"
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


def test_another_id_in_the_database_changes_all_keys(home, warm, read, connect):
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
def test_a_database_recreated_with_the_same_name_causes_a_miss(home, warm, read, second, connect):
    """After a restore from a dump its id may be the same. (SQLite has files instead.)"""
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
def test_a_dump_restored_into_the_same_database_causes_a_miss(home, warm, read, second, connect, restore):
    """A dump contains the id of the time when it was made. (SQLite has files instead.)"""
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
def test_a_role_that_cannot_query_the_cluster_still_has_an_identity(home, warm, read, monkeypatch):
    """Keys still distinguish the databases of a cluster, and `check --database` reports the missing permission. (SQLite has no roles.)"""
    connection.close()
    with monkeypatch.context() as patched:
        patched.setattr("housing.freshness.postgresql.base.CLUSTER", "SELECT pg_read_file('/no/such/file')")
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


def test_a_database_that_was_never_migrated_is_not_reported(replaced):
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
