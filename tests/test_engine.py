"""The cache engine is one folder, which knows no listing. It can be moved into another project."""

import ast
import inspect
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "housing" / "freshness"
SOURCES = sorted(path for path in ENGINE.rglob("*.py") if "migrations" not in path.parts)

LIBRARIES = {"django", "django_redis", "redis", "rest_framework", "psycopg", "sqlite3"}
"""What the engine may import beside the standard library and itself."""


def imports_of(path):
    """(module, level) of each import in a file, also of those inside functions; a relative one with the dots that it begins with."""
    package = path.parent.relative_to(ENGINE.parent).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.module or "", node.level, (*base, *(node.module or "").split(".")) if node.module else base


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ENGINE)))
def test_the_engine_imports_only_itself_and_libraries(path):
    """And itself by relative imports, so that the folder may have another name and stand elsewhere."""
    foreign = [module for module, level, _ in imports_of(path) if not level and module.partition(".")[0] not in LIBRARIES | sys.stdlib_module_names]
    upwards = [whole for _, level, whole in imports_of(path) if level and (not whole or whole[0] != ENGINE.name)]

    assert (foreign, upwards) == ([], [])


def test_the_engines_imports_have_no_circle():
    graph = {}
    for path in SOURCES:
        name = ".".join(path.relative_to(ENGINE.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {".".join(whole) for _, level, whole in imports_of(path) if level}
    del graph[ENGINE.name]  # the public face, which imports lazily what it offers

    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(f"The modules import each other in a circle: {' → '.join(circle.args[1])}")
    assert set(graph) <= set(order)


def test_the_engine_names_no_listing():
    """Neither an app, nor a model, nor a table. (`property` is Python's word, too, and LOCATION one of Django's.)"""
    models = apps.get_app_config("housing").get_models()
    words = {"housing", "listing", "listings"} | {name for model in models for name in (model.__name__, model._meta.model_name, model._meta.db_table)}
    found = [
        f"{path.relative_to(ENGINE)}:{number}: {line.strip()}"
        for path in [*SOURCES, *ENGINE.glob("*.lua")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (words - {"property", "location"}) & set(re.findall(r"\w+", line))
    ]

    assert found == []


def test_the_example_imports_the_engine_from_its_public_face_alone():
    """Imports point one way: from the example down to the engine."""
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
def test_the_public_face_has_what_it_offers(name):
    assert getattr(freshness, name) is not None


def test_the_public_face_has_nothing_else():
    with pytest.raises(AttributeError, match="has no attribute 'CacheView'"):
        _ = freshness.CacheView


# Its settings


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_default_a_unit_and_a_meaning_and_is_used(name):
    """A setting that nobody reads promises what nobody keeps."""
    used = [path.name for path in SOURCES if re.search(rf"conf\.{name}\b|\"{name}\"", path.read_text(encoding="utf-8")) and path.name != "settings.py"]

    assert SETTINGS[name].unit
    assert SETTINGS[name].meaning.endswith(".")
    assert used


def test_a_setting_that_is_overridden_counts_at_once():
    with override_settings(FRESHNESS_BETA=7):
        assert conf.BETA == 7
    assert SETTINGS["BETA"].default == conf.BETA


def test_a_setting_that_there_is_not_is_an_error():
    with pytest.raises(AttributeError, match="There is no setting FRESHNESS_PATIENCE"):
        _ = conf.PATIENCE


@pytest.mark.parametrize("name", ["nowhere", "housing.Castle"])
def test_a_model_to_track_that_there_is_not_is_refused_by_its_name(settings, name):
    settings.FRESHNESS_MODELS = [name]

    with pytest.raises(ImproperlyConfigured, match=f"FRESHNESS_MODELS names '{name}': .* Write an app's label, or a model as app_label.Model."):
        tables()


# Its hold on Django


def test_every_private_method_of_djangos_that_is_overridden_takes_what_the_engine_knows():
    """A Django that calls them otherwise is refused until somebody has looked."""
    assert list(private.changed()) == []


def test_a_method_that_takes_something_else_is_named(monkeypatch):
    monkeypatch.setitem(private.OVERRIDDEN, "django.db.backends.base.base.BaseDatabaseWrapper", {"_commit": "(self, force)", "_end": "(self)"})

    assert list(private.changed()) == [
        "django.db.backends.base.base.BaseDatabaseWrapper._commit is (self) in this Django; the engine overrides (self, force).",
        "django.db.backends.base.base.BaseDatabaseWrapper._end is nothing in this Django; the engine overrides (self).",
    ]


def test_every_method_of_djangos_that_the_engine_overrides_is_in_the_list():
    """Read off the classes: which of our methods Django's classes below them have, too."""
    from django.db.backends.postgresql import base as postgresql
    from django.db.backends.sqlite3 import base as sqlite3
    from django.db.models.sql import compiler as theirs

    from housing.freshness import compiler, connection
    from housing.freshness.postgresql import base as our_postgresql
    from housing.freshness.sqlite3 import base as our_sqlite3

    pairs = [
        (connection.ConnectionMixin, sqlite3.DatabaseWrapper),
        (our_sqlite3.DatabaseWrapper, sqlite3.DatabaseWrapper),
        (our_postgresql.DatabaseWrapper, postgresql.DatabaseWrapper),
        (compiler.OperationsMixin, sqlite3.DatabaseWrapper.ops_class),
        *((mixin, getattr(theirs, name)) for name, mixin in compiler.MIXINS.items()),
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
