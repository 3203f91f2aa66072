"""The tracked tables and their tags.

A tag begins with the name of a table, which every writer knows: a model, its proxy, a migration's model and raw SQL.

| tag | written by | read by |
| --- | --- | --- |
| `t` | every write to the table | entries that depend on the whole table |
| `t:*` | a write to unknown rows | every other entry that depends on the table |
| `t:7` | an UPDATE or DELETE of this row | entries that show it |
| `t.price` | an UPDATE of this column | entries that are filtered or ordered by it |
| `t:+`, `t:-` | an INSERT, a DELETE | entries that depend on which rows exist |
| `t-7` | a DELETE of this row | entries that read the row and show only that there is one |
| `t-7.agent_id` | an UPDATE by which this row leaves its scope of this column | the same, if they are selected by the column |
| `t.agent_id=3` | an UPDATE of a row to this value | entries that are selected by it: this *scope* |
| `t.agent_id=3+` | an INSERT of a row with this value | the same, unless rows of this table matter only if others refer to them |
| `t.agent_id=3-` | a DELETE of a row with this value, an UPDATE from it | entries of the scope that do not know which rows they read |
| `t.agent_id=3.price` | an UPDATE of this column of a row in the scope | entries of the scope that are filtered or ordered by the column |
| `t.location_id>city=Bath` | an INSERT of a row whose location has this city, an UPDATE to such a location | entries of this scope through a join |
| `t.location_id>city=Bath.price` | an UPDATE of this column of a row that keeps its location | as within any scope |
| `t:?` | a write to rows whose scopes are unknown | every entry of a scope |
| `t:>` | a write to rows whose scopes through a join are unknown | every entry of such a scope (see joined.py) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import models
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Field, ForeignKey, Model, deletion
from django.db.models.fields import NOT_PROVIDED
from django.db.models.signals import class_prepared

from .places import WHOLE_NUMBERS, Place, name_of, place_of, unknown
from .settings import conf

Text = Callable[[Any], str]
"""Returns the text of a column's value in a tag. Equal values of a driver or a field have equal texts."""

MANY_ROWS = 100
"""A write with more tags of one table tags the whole table, so that a lease stays short. Tags of scopes are not counted."""

MANY_SCOPED = 5 * MANY_ROWS
"""A write with more tags of scopes of one table tags all of its scopes. A changed row has some twenty."""

WRITTEN_BY_THE_DATABASE: tuple[type, ...] = tuple(filter(None, [getattr(deletion, "DatabaseOnDelete", None)]))
"""The `on_delete` classes of Django 6.1 and later with which the database itself changes the referring rows."""


TRUST = "|if:"
"""The beginning of a condition of a lease (see joined.py)."""


class Joined(NamedTuple):
    """A column whose values are scopes of the rows that refer to its row by an enforced foreign key."""

    reference: str
    table: str
    key: str
    key_text: Text
    column: str
    text: Text

    @property
    def name(self) -> str:
        """As tags name it."""
        return f"{self.reference}>{self.column}"


@dataclass(frozen=True)
class Table:
    """A tracked table. `pk`, `references` and `scopes` have only columns whose values can be part of a tag."""

    name: str
    label: str
    """The name of its model, shown in messages."""
    pk: str | None
    pk_text: Text | None
    references: dict[str, Text]
    """Each column that refers to another row → the text of its values."""
    scopes: dict[str, Text]
    """Each column whose values are scopes → the text of its values: the references, and the columns with which an index begins."""
    places: dict[str, Place]
    """The primary key, and each column with which an index begins and whose values are numbers or times → their place in its order."""
    placed: str
    """Its name with that of its places."""
    generated: frozenset[str] = frozenset()
    """The columns that the database generates from others."""
    managed: bool = True
    """Whether Django creates the table. Otherwise it may be a view of unknown tables."""
    joined: tuple[Joined, ...] = ()
    """The scopes of its rows through a join."""

    @property
    def all(self) -> set[str]:
        """The tags of a write to unknown rows."""
        return {self.name, f"{self.name}:*"}

    @property
    def unscoped(self) -> str:
        """The tag of a write to rows whose scopes are unknown."""
        return f"{self.name}:?"

    @property
    def unjoined(self) -> str:
        """The tag of a write to rows whose scopes through a join are unknown."""
        return f"{self.name}:>"

    def in_scopes(self, tags: set[str]) -> set[str]:
        """Return those of these tags that are of one scope, or of a row that is deleted or leaves one."""
        prefixes = (f"{self.name}-", TRUST, *(f"{self.name}.{column}=" for column in (*self.scopes, *(joined.name for joined in self.joined))))
        return {tag for tag in tags if tag.startswith(prefixes)}


def text_of(field: Field[Any, Any]) -> Text | None:
    """Return the function that makes texts of this column's values; None if equal values may have different texts, or the reverse."""
    while field.is_relation:
        field = field.target_field  # type: ignore[attr-defined]  # the stubs have it for foreign keys only
    if type(field) in WHOLE_NUMBERS:
        return str
    if type(field) is models.UUIDField:
        return lambda value: str(value if isinstance(value, UUID) else UUID(str(value)))
    if type(field) in {models.CharField, models.SlugField} and not getattr(field, "db_collation", None):
        return _quoted
    return None


@lru_cache(maxsize=256, typed=True)  # 1, 1.0 and True are equal keys, and have different texts
def _quoted(value: Any) -> str:
    """Return a text that separates nothing in a list of tags. A member of an enumeration counts as the text that is stored."""
    return quote(str.__str__(value) if isinstance(value, str) else str(value), safe="")


Cached = TypeVar("Cached", bound=Any)

caches: list[Any] = []


def until_the_models_change(cached: Cached) -> Cached:
    """Decorate a cached function whose results depend on the installed models."""
    caches.append(cached)
    return cached


@until_the_models_change
@cache
def tables() -> dict[str, Table]:
    """name → table, for every table that is tracked. Raises ImproperlyConfigured for a model in FRESHNESS_MODELS that there is not."""
    apps.check_models_ready()
    found: dict[str, Table] = {}
    for model in _with_relatives(_named()):
        table = _table_of(model)
        known = found.get(table.name)
        if known:  # two models of one table
            table = _both(known, table)
        found[table.name] = table
    return {name: replace(table, joined=_joined(table, found)) for name, table in found.items()}


@until_the_models_change
@cache
def targets() -> dict[str, frozenset[str]]:
    """table → the columns of its scopes, for each table whose rows have scopes of others through a join."""
    every = tables()
    return {joined.table: frozenset(every[joined.table].scopes) for table in every.values() for joined in table.joined}


@until_the_models_change
@cache
def cascades() -> dict[str, frozenset[str]]:
    """table → the tracked tables in which the database itself changes rows when one of its rows is deleted, where there are any."""
    every = {model._meta.db_table: _cascades(model) & tables().keys() for model in apps.get_models(include_auto_created=True)}
    return {name: below for name, below in every.items() if below}


@until_the_models_change
@cache
def other_tables() -> frozenset[str]:
    """The tables of all other models; what is not managed may be a view of a tracked table."""
    every = {model._meta.db_table for model in apps.get_models(include_auto_created=True) if model._meta.managed}
    every |= {MigrationRecorder.Migration._meta.db_table, "freshness_database", "freshness_outbox"}  # none is a model of an app
    return frozenset(every) - tables().keys()


def label_of(table: str) -> str:
    """The model of a table, as FRESHNESS_MODELS names it."""
    labels = [model._meta.label for model in apps.get_models(include_auto_created=True) if model._meta.db_table == table]
    return labels[0] if labels else f"the model of {table}"


def tracked() -> list[type[Model]]:
    """Every model whose table is tracked."""
    return [model for model in apps.get_models(include_auto_created=True) if model._meta.db_table in tables()]


def related_tables(model: type[Model]) -> set[str]:
    """The tables that hold the rows of a model, and those of its many-to-many fields."""
    return {each._meta.db_table for each in _with_relatives(iter([model]))}


def _named() -> Iterator[type[Model]]:
    for name in conf.MODELS:
        app, _, model = name.partition(".")
        try:
            if model:
                yield apps.get_model(app, model)
            else:  # an unmanaged model may be a view of unknown tables
                yield from (each for each in apps.get_app_config(app).get_models(include_auto_created=True) if each._meta.managed)
        except LookupError as error:
            raise ImproperlyConfigured(f"FRESHNESS_MODELS names {name!r}: {error} Write an app's label, or a model as app_label.Model.") from None


def _with_relatives(named: Iterator[type[Model]]) -> Iterator[type[Model]]:
    """These models, the parents whose tables hold a part of their rows, and the tables of their many-to-many fields."""
    for model in named:
        opts = model._meta
        relatives: list[Any] = [model, *opts.get_parent_list(), *(field.remote_field.through for field in opts.many_to_many)]
        yield from (each._meta.concrete_model for each in relatives)


def _table_of(model: type[Model]) -> Table:
    opts = model._meta
    text = text_of(opts.pk) if hasattr(opts.pk, "column") and opts.pk.column else None
    generated = frozenset(str(field.column) for field in opts.local_concrete_fields if getattr(field, "generated", False))
    references = {str(field.column): made for field in opts.local_concrete_fields if field.is_relation and (made := text_of(field))}
    scopes = references | {str(field.column): made for field in _indexed(model) if (made := text_of(field))}
    places: dict[str, Place] = {}
    if text and "|" not in opts.db_table:
        places = {str(opts.pk.column): place_of(opts.pk) or unknown}
        places |= {str(field.column): place for field in _indexed(model) if not field.is_relation and (place := place_of(field))}
    pk = opts.pk.column if text else None
    return Table(
        opts.db_table, opts.object_name or opts.db_table, pk, text, references, scopes, places, name_of(opts.db_table, places), generated, opts.managed
    )


def _indexed(model: type[Model]) -> Iterator[Field[Any, Any]]:
    """Yield the columns with which an index begins, besides the primary key. The value of a generated or defaulted one is unknown at an INSERT."""
    opts = model._meta
    first = {index.fields_orders[0][0] for index in opts.indexes if index.fields_orders}
    first |= {constraint.fields[0] for constraint in opts.constraints if isinstance(constraint, models.UniqueConstraint) and constraint.fields}
    first |= {together[0] for together in opts.unique_together}
    for field in opts.local_concrete_fields:
        is_known = not getattr(field, "generated", False) and getattr(field, "db_default", NOT_PROVIDED) is NOT_PROVIDED
        if is_known and not field.primary_key and (getattr(field, "db_index", False) or field.unique or field.name in first):
            yield field


def _both(one: Table, other: Table) -> Table:
    """Return the columns that two models of one table have in common."""
    pk, text = (one.pk, one.pk_text) if one.pk == other.pk else (None, None)
    references = {column: made for column, made in one.references.items() if column in other.references}
    scopes = {column: made for column, made in one.scopes.items() if column in other.scopes}
    places = {column: made for column, made in one.places.items() if pk and other.places.get(column) == made}
    generated, managed = one.generated | other.generated, one.managed or other.managed
    return Table(one.name, one.label, pk, text, references, scopes, places, name_of(one.name, places), generated, managed)


def _joined(table: Table, known: dict[str, Table]) -> tuple[Joined, ...]:
    """Return the scopes of a table's rows through a join. A unique column has as many as there are rows."""
    models = [model for model in apps.get_models(include_auto_created=True) if model._meta.db_table == table.name and not model._meta.proxy]
    found: list[list[Joined]] = []
    for model in models:
        fields = [field for field in model._meta.local_concrete_fields if isinstance(field, ForeignKey) and field.column in table.references]
        found.append(
            [joined for field in fields if getattr(field, "db_constraint", False) and not field.primary_key for joined in _joined_by(field, table, known)]
        )
    return tuple(joined for joined in found[0] if all(joined in others for others in found[1:])) if found else ()


def _joined_by(field: ForeignKey[Any, Any], table: Table, known: dict[str, Table]) -> Iterator[Joined]:
    target = field.target_field
    other = known.get(target.model._meta.db_table)
    if other is None or not other.managed or other.name == table.name or "|" in other.name:
        return
    if other.pk is None or other.pk_text is None or other.pk != target.column:
        return
    unique = {each.column for each in target.model._meta.local_concrete_fields if each.unique}
    for column, text in other.scopes.items():
        if column not in unique:
            yield Joined(str(field.column), other.name, other.pk, other.pk_text, column, text)


def _cascades(model: type[Model], above: frozenset[type[Model]] = frozenset()) -> frozenset[str]:
    found: set[str] = set()
    for relation in model._meta.get_fields(include_hidden=True):
        child = cast(type[Model], relation.related_model)
        if isinstance(getattr(relation, "on_delete", None), WRITTEN_BY_THE_DATABASE) and child not in above:
            found |= {child._meta.db_table} | _cascades(child, above | {model})
    return frozenset(found)


def forget(**_: Any) -> None:
    """Look again which tables there are."""
    for cached in caches:
        cached.cache_clear()


def _setting_changed(setting: str, **_: Any) -> None:
    if setting in ("FRESHNESS_MODELS", "INSTALLED_APPS"):
        forget()


class_prepared.connect(forget)  # a model that is made while the process runs
setting_changed.connect(_setting_changed)
