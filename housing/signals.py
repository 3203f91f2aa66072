"""What a write makes stale: one table, one handler.

The handler only names tags, into the transaction that carries the write; `db/commit.py` takes them to the journal at COMMIT.
What is written without a signal (`update()`, `bulk_create()`, SQL) names its whole model there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from django.apps import apps
from django.db.models.signals import post_save, pre_delete, pre_save

from housing.freshness.connection import CommitMixin, ours
from housing.models import Agent, Location, Office, Property, PropertyImage, TaggedModel

LIST = "properties"
"""The tag of the list itself: a property was created or deleted."""


@dataclass(frozen=True)
class Stale:
    """What a write to a row of one model makes stale."""

    row: str
    """Whose column is in the tag of the row: `id`, or the owner under which it is shown."""
    selects: tuple[str, ...] = ()
    """The columns by which pages are selected or ordered; each has a tag of its own."""
    listed: bool = False
    """Whether its creation or deletion changes the list."""


TABLE: dict[type[TaggedModel], Stale] = {
    Property: Stale("id", ("title", "description", "property_type", "status", "price", "bedrooms", "location_id", "agent_id"), listed=True),
    Agent: Stale("id", ("office_id",)),
    Office: Stale("id"),
    Location: Stale("id", ("city",)),
    PropertyImage: Stale("property_id"),
}


def row_tag(model: type[TaggedModel], key: Any) -> str:
    """`agent:3`: the row itself; `images:7`: the images of property 7."""
    return f"{model.tag}:{key}"


def column_tag(model: type[TaggedModel], column: str) -> str:
    """`property.price`: by which pages are selected or ordered."""
    return f"{model.tag}.{column}"


def connect() -> None:
    """Listen to every model whose rows are in a table of ours, proxies included."""
    for model in apps.get_models():
        if model._meta.concrete_model in TABLE:
            for signal in (pre_save, post_save, pre_delete):
                signal.connect(handle, sender=model)


def handle(signal: Any, instance: TaggedModel, using: str, **details: Any) -> None:
    """Name what this save or deletion makes stale, into the transaction that carries it."""
    connection = ours(using)
    if not connection.managed:
        return  # a fixture saved by hand, past our save_base(): its SQL is given a transaction, and names the whole model there
    model = _model(instance)
    if signal is pre_save:
        instance.announced = _tags_of_save(instance, details["update_fields"], connection)
        connection.name(instance.announced)
    elif signal is post_save:
        happened = "created" if details["created"] else "changed"
        written = _tags_of_written(instance, details["created"], details["update_fields"], connection)
        connection.name((instance.announced or set()) | written, f"[SIGNAL] {model.__name__} {instance.pk} {happened}.")
    else:
        listed = {LIST} if TABLE[model].listed else set()
        connection.name(_row_tags(instance) | _stored_row_tags(instance, connection) | listed, f"[SIGNAL] {model.__name__} {instance.pk} deleted.")
        connection.name_deleted(model._meta.db_table, instance.pk)


def _tags_of_save(instance: TaggedModel, update_fields: Iterable[str] | None, connection: CommitMixin) -> set[str]:
    model = _model(instance)
    stale = TABLE[model]
    tags = _row_tags(instance) | ({LIST} if stale.listed and instance._state.adding else set())
    if instance.pk is None:
        return tags
    return tags | _stored_row_tags(instance, connection) | _column_tags(instance, update_fields, connection)


def _tags_of_written(instance: TaggedModel, created: bool, update_fields: Iterable[str] | None, connection: CommitMixin) -> set[str]:
    """What only shows when it is done: a receiver behind ours changed the instance, or an update found no row and inserted one."""
    stale = TABLE[_model(instance)]
    if not created:
        return _row_tags(instance) | _column_tags(instance, update_fields, connection)
    return ({LIST} if stale.listed else set()) | (_row_tags(instance) if stale.row != "id" else set())


def _column_tags(instance: TaggedModel, update_fields: Iterable[str] | None, connection: CommitMixin) -> set[str]:
    """The columns that a save of an existing row writes; after a locked read, those that differ."""
    model = _model(instance)
    held = _held_under_lock(instance, connection)
    tags = _column_tags_of(model)
    if update_fields is None and not held:
        return set(tags.values())
    written = tags.keys() if update_fields is None else {cast(Any, instance._meta.get_field(name)).attname for name in update_fields}
    return {tag for column, tag in tags.items() if column in written and (column not in held or held[column] != getattr(instance, column))}


@cache
def _column_tags_of(model: type[TaggedModel]) -> dict[str, str]:
    return {column: column_tag(model, column) for column in TABLE[model].selects}


def _model(instance: TaggedModel) -> type[TaggedModel]:
    return cast(type[TaggedModel], instance._meta.concrete_model)  # of a proxy, what it stands for


def _held_under_lock(instance: TaggedModel, connection: CommitMixin) -> dict[str, Any]:
    """What the row is certain to hold until this transaction writes it; without a lock nothing is certain."""
    frame, pk, held = instance.locked or (None, None, {})
    return held if connection.holds(frame) and pk == instance.pk else {}


def _row_tags(instance: TaggedModel) -> set[str]:
    model = _model(instance)
    column = TABLE[model].row
    key = getattr(instance, column)
    if hasattr(key, "resolve_expression"):
        return {row_tag(model, "*")}  # only the database can tell whose
    return set() if key is None else {row_tag(model, cast(Any, model._meta.get_field(column)).get_prep_value(key))}


def _stored_row_tags(instance: TaggedModel, connection: CommitMixin) -> set[str]:
    """The row's tag as the database has it: an image may have been moved since `instance` was loaded, or by it."""
    model = _model(instance)
    column = TABLE[model].row
    if column == "id":
        return set()
    held = _held_under_lock(instance, connection)
    stored = model._base_manager.using(connection.alias).select_for_update().filter(pk=instance.pk).values_list(column, flat=True)
    return {row_tag(model, key) for key in ([held[column]] if column in held else stored)}
