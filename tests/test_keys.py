"""Cache keys. A key depends on everything that affects a response or its tags, and on the database, so an entry is never served to another deployment."""

import collections
import datetime
import functools
import os
import re
import shutil
import sys
import uuid
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.core.cache import cache, caches
from django.utils.translation import gettext_lazy
from django_redis import get_redis_connection

from housing.freshness import fingerprint as shape
from housing.freshness.checks import settings_have_a_text
from housing.freshness.fingerprint import LEFT_OUT, PRUNED, fingerprint, settings_that_count, sources, text_of
from housing.freshness.journal import journal
from housing.freshness.keys import LONG, entry_key
from tests import ROOT
from tests.fixtures.cache import entries
from tests.fixtures.processes import python

NOT_PROMISED = {
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


def test_the_journal_follows_its_cache_to_another_prefix(settings):
    """Each thread keeps the key of the journal, because making it costs six calls at each command. Two services with one key would share a journal."""
    client, before = get_redis_connection("default"), cache.make_key("journal")
    journal.begin()
    settings.CACHES = {"default": settings.CACHES["default"] | {"KEY_PREFIX": f"{settings.CACHES['default']['KEY_PREFIX']}-another"}}
    after = caches["default"].make_key("journal")
    try:
        journal.begin()
        assert (after != before, client.exists(before), client.exists(after)) == (True, 1, 1)
    finally:
        client.delete(after)


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


def test_a_setting_that_a_project_ignores_changes_no_key(settings, in_a_new_process):
    """The address of a server may differ between processes, which would then share no entries. FRESHNESS_IGNORED_SETTINGS lists such settings."""
    assert {"REDIS_URL", "TRUSTED_PROXIES"} == {*settings.FRESHNESS_IGNORED_SETTINGS}
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
    for left_out in (*PRUNED, ".venv"):
        (package / left_out).mkdir()
        (package / left_out / "left.py").touch()

    assert len(set(seen)) == len(seen)
    assert in_a_new_process() == seen[-1]


def test_the_package_of_the_settings_changes_the_fingerprint(settings, monkeypatch, tmp_path, in_a_new_process):
    """It may be neither an app nor the package of the URLs."""
    package = tmp_path / "a_configuration"
    package.mkdir()
    for name in ("__init__.py", "settings.py"):
        (package / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "a_configuration.settings")
    settings.A_NEW_SETTING = "overridden settings do not know their module"
    before = in_a_new_process()
    (package / "settings.py").write_text("another")

    assert in_a_new_process() != before


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


def test_the_code_in_the_fingerprint_is_hashed_when_a_process_starts():
    """A deployment may overwrite the files before the first request, and the hash would not be that of the code that runs."""
    script = "import django; django.setup(); from housing.freshness import fingerprint as f; print(f._hash_of_code.cache_info().currsize)"

    assert python("-c", script, DJANGO_SETTINGS_MODULE="housing.settings", DJANGO_SECRET_KEY="any", REDIS_URL="fakeredis://").stdout == "1\n"


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
    script = f"import sys; sys.path.append({str(folder)!r}); import django; django.setup(); from housing.freshness import fingerprint as f; {script}"
    environment = {"DJANGO_SETTINGS_MODULE": "odd_settings", "DJANGO_SECRET_KEY": "any", "REDIS_URL": "fakeredis://"}
    runs = [python("-c", script, **environment, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert [run.code for run in runs] == [0, 0], runs
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


IDENTITIES = """
import django, json
django.setup()
from django.core.management import call_command
from django.db.models import F
from django.test import Client
from housing.freshness.journal import journal
from housing.models import Agent, Location, Office, Property, PropertyImage
journal.begin()  # otherwise it would trust nothing for the seconds of a lease
call_command("seed", properties=30, verbosity=0)
call_command("import_listings", "LISTINGS", "--mapping", "MAPPING", verbosity=0)
Property.objects.update(updated_at=F("created_at"))
for model in (Office, Agent, Location, Property, PropertyImage):
    print(*model.objects.order_by("pk").values_list(), sep="\\n")
for path in ("?page_size=5", "1/"):
    response = Client().get(f"/api/properties/cached/{path}")
    print(response.headers["ETag"], response.headers["Cache-Status"], response.content.decode())
"""


@pytest.mark.slow
def test_two_processes_give_equal_things_the_same_name(tmp_path, migrated):
    """Seeded rows, the hashes of imported rows, ETags and cursors. If one depended on the process, a second import would add every row again, and a browser
    would load a page that it has.
    """
    mapping, listings = tmp_path / "mapping.toml", tmp_path / "listings.csv"
    mapping.write_text(MAPPING)
    listings.write_text("City,Price,Date\nBath,100,2027-01-01\nWells,90,2027-01-02\nWells,90,2027-01-02\n")
    script = IDENTITIES.replace("LISTINGS", str(listings)).replace("MAPPING", str(mapping))
    environment = {"DJANGO_SETTINGS_MODULE": "housing.settings", "DJANGO_SECRET_KEY": "any", "REDIS_URL": "fakeredis://", "DJANGO_ALLOWED_HOSTS": "testserver"}

    first, second = (
        python("-c", script, **environment, DATABASE_URL=f"sqlite:///{shutil.copy(migrated, tmp_path / seed)}", PYTHONHASHSEED=seed) for seed in ("1", "2")
    )

    assert first.stdout.splitlines() == second.stdout.splitlines()
    assert (first.code, first.stdout.count("stored")) == (0, 2), first.stderr


MAPPING = """
[office]
name.default = "Town"
[agent]
name.default = "Ann"
[location]
city.column = "City"
[property]
title.column = "City"
property_type.default = "house"
status.default = "sold"
price.column = "Price"
created_at = { column = "Date", date = "%Y-%m-%d" }
"""
