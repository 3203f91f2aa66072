"""The cache engine is one folder. It does not refer to the example's models, so another project can copy it."""

import ast
import inspect
import re
import sys
from graphlib import TopologicalSorter

import django
import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.module_loading import import_string

from housing import freshness
from housing.freshness import private
from housing.freshness.settings import SETTINGS, conf
from housing.freshness.tracking import tables
from tests import ROOT

ENGINE = ROOT / "housing" / "freshness"
SOURCES = sorted(path for path in ENGINE.rglob("*.py") if "migrations" not in path.parts)

LIBRARIES = {"django", "django_redis", "hiredis", "prometheus_client", "redis", "rest_framework", "psycopg", "sqlite3"}
"""The packages that the engine may import, besides the standard library and itself."""


def imports_of(path):
    """(module, level, absolute path) of each import in a file, including imports inside functions. `level` is the number of leading dots."""
    package = path.parent.relative_to(ENGINE.parent).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.module or "", node.level, (*base, *(node.module or "").split(".")) if node.module else base


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ENGINE)))
def test_the_engine_imports_only_itself_and_libraries(path):
    """It imports itself only by relative imports, so that the folder can be renamed and moved."""
    foreign = [module for module, level, _ in imports_of(path) if not level and module.partition(".")[0] not in LIBRARIES | sys.stdlib_module_names]
    upwards = [whole for _, level, whole in imports_of(path) if level and (not whole or whole[0] != ENGINE.name)]

    assert (foreign, upwards) == ([], [])


def test_the_imports_of_the_engine_have_no_cycle():
    """Without cycles, each module can be read and tested after those that it imports."""
    graph = {}
    for path in SOURCES:
        name = ".".join(path.relative_to(ENGINE.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {".".join(whole) for _, level, whole in imports_of(path) if level}
    del graph[ENGINE.name]  # the public interface, which imports its names lazily

    assert set(graph) <= set(TopologicalSorter(graph).static_order())  # a CycleError shows the cycle


def test_the_engine_does_not_mention_the_example():
    """It contains no name of an app, model or table of the example. (`property` is also a Python built-in, and LOCATION a Django setting.)"""
    models = apps.get_app_config("housing").get_models()
    words = {"housing", "listing", "listings"} | {name for model in models for name in (model.__name__, model._meta.model_name, model._meta.db_table)}
    found = [
        f"{path.relative_to(ENGINE)}:{number}: {line.strip()}"
        for path in [*SOURCES, *ENGINE.glob("*.lua"), *ENGINE.rglob("*.sql")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (words - {"property", "location"}) & set(re.findall(r"\w+", line))
    ]

    assert found == []


def test_the_example_imports_only_the_public_interface_of_the_engine():
    """Imports go in one direction, from the example to the engine."""
    imported = {
        (path.relative_to(ROOT).as_posix(), node.module, name.name)
        for path in (ROOT / "housing").rglob("*.py")
        if ENGINE not in path.parents
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("housing.freshness")
        for name in node.names
    }

    assert {module for _, module, _ in imported} == {"housing.freshness"}
    assert {name for _, _, name in imported} <= set(freshness.__all__)
    assert ("housing/views.py", "housing.freshness", "CachedView") in imported


@pytest.mark.parametrize("name", freshness.__all__)
def test_the_public_interface_has_every_listed_name(name):
    """The names are imported lazily, so a typo in the list would surface only in use."""
    assert getattr(freshness, name) is not None


def test_the_public_interface_has_no_other_names():
    """A misspelled import fails at once."""
    with pytest.raises(AttributeError, match="has no attribute 'CacheView'"):
        _ = freshness.CacheView


# Settings


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_used_and_documents_its_default_unit_and_meaning(name):
    """An unused setting would have no effect, although it is documented."""
    used = [path.name for path in SOURCES if re.search(rf"conf\.{name}\b|\"{name}\"", path.read_text(encoding="utf-8")) and path.name != "settings.py"]

    assert SETTINGS[name].unit
    assert SETTINGS[name].meaning.endswith(".")
    assert used


def test_an_overridden_setting_takes_effect_at_once():
    """Tests rely on `override_settings`."""
    with override_settings(FRESHNESS_BETA=7):
        assert conf.BETA == 7
    assert SETTINGS["BETA"].default == conf.BETA


def test_an_unknown_setting_raises_an_error():
    """A misspelled name must not silently return a default."""
    with pytest.raises(AttributeError, match="There is no setting FRESHNESS_PATIENCE"):
        _ = conf.PATIENCE


@pytest.mark.parametrize("name", ["nowhere", "housing.Castle"])
def test_an_unknown_model_to_track_is_refused_with_its_name(settings, name):
    """Otherwise a misspelled model would not be tracked."""
    settings.FRESHNESS_MODELS = [name]

    with pytest.raises(ImproperlyConfigured, match=f"FRESHNESS_MODELS names '{name}': .* Write an app's label, or a model as app_label.Model."):
        tables()


# Overrides of Django's methods


def test_every_overridden_private_method_of_django_has_the_expected_signature():
    """A Django version with other signatures is refused until the engine has been adapted."""
    assert list(private.changed()) == []


def test_a_method_with_another_signature_is_reported(monkeypatch):
    """The report shows the signature in Django and the one in the engine."""
    monkeypatch.setitem(private.OVERRIDDEN, "django.db.backends.base.base.BaseDatabaseWrapper", {"_commit": "(self, force)", "_end": "(self)"})

    assert list(private.changed()) == [
        "django.db.backends.base.base.BaseDatabaseWrapper._commit is (self) in the installed version; the engine expects (self, force).",
        "django.db.backends.base.base.BaseDatabaseWrapper._end is nothing in the installed version; the engine expects (self).",
    ]


def test_every_method_of_django_that_the_engine_overrides_is_listed():
    """The spec compares the engine's classes with the Django classes that they extend, so the list cannot miss a method."""
    from django.db.backends.postgresql import base as postgresql
    from django.db.backends.postgresql.psycopg_any import BaseTzLoader
    from django.db.backends.sqlite3 import base as sqlite3
    from django.db.backends.utils import CursorWrapper
    from django.db.models.sql import compiler as theirs

    from housing.freshness import compiler, connection, cursor
    from housing.freshness.postgresql import base as our_postgresql
    from housing.freshness.postgresql import begin
    from housing.freshness.sqlite3 import base as our_sqlite3

    pairs = [
        (connection.ConnectionMixin, sqlite3.DatabaseWrapper),
        (our_sqlite3.DatabaseWrapper, sqlite3.DatabaseWrapper),
        (our_postgresql.DatabaseWrapper, postgresql.DatabaseWrapper),
        (our_postgresql.Instants, BaseTzLoader),
        (begin.Cursor, postgresql.Cursor),
        (our_postgresql.Cursor, CursorWrapper),
        (cursor.CursorMixin, CursorWrapper),
        (compiler.OperationsMixin, sqlite3.DatabaseWrapper.ops_class),
        *((part, getattr(theirs, name)) for name, mixin in compiler.MIXINS.items() for part in mixin.__mro__ if part.__module__ == compiler.__name__),
    ]
    listed = {name for methods in private.OVERRIDDEN.values() for name in methods}
    overridden = {
        name
        for ours, django_class in pairs
        for name, member in vars(ours).items()
        if inspect.isfunction(member) and callable(getattr(django_class, name, None)) and not name.startswith("__")
    }

    assert overridden <= listed
    assert listed - overridden <= {"execute_returning_sql"} if django.VERSION < (6,) else listed == overridden
    assert all(import_string(path) for path in private.OVERRIDDEN)
