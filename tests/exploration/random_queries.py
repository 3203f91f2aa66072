"""Random querysets and random writes on models of every kind, for the specs of dependencies.

`queryset(draw, model)` makes a queryset, `write(draw, model)` carries out a write, `shown(found)` returns everything that a response could
show of a queryset, and `not_covered(…)` returns the tags that a write lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from django.core.exceptions import FieldError
from django.db import DatabaseError, IntegrityError, NotSupportedError, connection, models, transaction
from django.db.models import Count, Exists, F, Max, Model, OuterRef, Prefetch, Q, QuerySet, Subquery, Window
from django.db.models.functions import RowNumber, Upper

from housing.freshness.dependencies import Select, recorded
from housing.freshness.tracking import Table, tables, tracked
from housing.models import Agent, Location, Office, Property, PropertyImage

Draw = Callable[[Sequence[Any]], Any]
"""A function that chooses one of these options."""

WORDS = ["a", "b", "c*|\n'\""]
NUMBERS = [0, 1, 2]


HOUSING = [Office, Agent, Property, PropertyImage]


def fill(made: Sequence[type[Model]]) -> None:
    """Create a few rows of each model, with values that match each other often."""
    label, node, profile, badge, castle = made
    offices = [Office.objects.create(pk=n, name=WORDS[n % 2], city=WORDS[0]) for n in (1, 2)]
    agents = [Agent.objects.create(pk=n, name=WORDS[n % 3], office=offices[n % 2]) for n in (1, 2, 3)]
    place = Location.objects.create(pk=1, city=WORDS[0])
    for n in range(1, 6):
        home = Property.objects.create(pk=n, title=WORDS[n % 3], price=n % 3, bedrooms=n % 2 or None, location=place, agent=agents[n % 2])
        PropertyImage.objects.create(pk=n, property_id=max(1, n - 1), url=f"https://x/{n % 2}", position=n % 3)
        assert home.pk == n
    labels = [label.objects.create(code=code, word=word) for code, word in zip([*WORDS, "%"], [*WORDS, "a"], strict=True)]
    for n in range(1, 6):
        fields = {"word": WORDS[n % 3], "rank": n % 3, "label": labels[n % 4] if n % 2 else None, "agent": agents[n % 3] if n > 2 else None}
        here: Any = castle(pk=n, towers=n % 3, keeper=agents[0], **fields) if n > 3 else node(pk=n, **fields)
        here.save(force_insert=True)
        here.labels.add(*labels[: n % 3])
        node.objects.filter(pk=n).update(parent_id=n // 2 or None, anywhere_id="nowhere" if n == 3 else "a")
    node.objects.get(pk=1).friends.add(2, 3)
    for n in (1, 2, 4):
        profile.objects.create(pk=n, node_id=n, word=WORDS[n % 3])
        badge.objects.create(node_id=n, rank=n % 3)


# Querysets


def scalars(model: type[Model]) -> list[str]:
    """The columns of a model whose values match those of other rows often."""
    kept = (models.CharField, models.IntegerField, models.DecimalField, models.GeneratedField)
    names = {"title", "price", "bedrooms", "status", "word", "rank", "double", "towers", "name", "city", "position", "caption", "url"}
    return [field.name for field in model._meta.concrete_fields if field.name in names and isinstance(field, kept)]


def relations(model: type[Model], *, many: bool = True) -> list[Any]:
    """The relations of a model to models of POOL."""
    found = [each for each in model._meta.get_fields() if each.is_relation and each.related_model in POOL]
    return [each for each in found if many or each.many_to_one or each.one_to_one]


def queried(relation: Any) -> str:
    """The name of a relation in a filter."""
    return str(relation.name)


def attribute(relation: Any) -> str:
    """The name of a relation on an object, and in a prefetch."""
    return str(relation.get_accessor_name() if relation.auto_created and not relation.concrete else relation.name)


POOL: list[type[Model]] = []
"""The models of these queries and writes."""


def column(draw: Draw, model: type[Model], *, depth: int = 2, many: bool = True) -> tuple[str, type[Model], str]:
    """A column, possibly through relations: its prefix, its model and its name."""
    prefix = ""
    while depth and draw([False, False, True]) and (found := relations(model, many=many)):
        relation = draw(found)
        prefix, model, depth = f"{prefix}{queried(relation)}__", relation.related_model, depth - 1
    return prefix, model, draw(["pk", *scalars(model)])


def value(draw: Draw, model: type[Model], name: str) -> Any:
    """A value that a row may have in this column."""
    field = model._meta.pk if name == "pk" else model._meta.get_field(name)
    while field.is_relation:
        field = field.target_field
    if isinstance(field, models.CharField | models.URLField):
        return draw([*WORDS, "%", "nowhere", "https://x/0", "available"])
    return draw([1, 2, 3, 4, 5, 9]) if name == "pk" else draw(NUMBERS)


def condition(draw: Draw, model: type[Model], depth: int = 2) -> Q:
    """A condition on rows of this model."""
    kind = draw(["reference", "column", "column", "reference", "and", "or", "not", "inner", "column to column"])
    if kind in ("and", "or", "not") and depth:
        first = condition(draw, model, depth - 1)
        if kind == "not":
            return ~first
        second = condition(draw, model, depth - 1)
        return first & second if kind == "and" else first | second
    if kind == "reference" and (found := relations(model)):
        return reference(draw, draw(found))
    if kind == "inner" and (found := [each for each in relations(model) if not each.many_to_many]):
        return Q(Exists(correlated(draw, draw(found))))
    prefix, there, name = column(draw, model)
    numbers = [each for each in scalars(model) if each in ("rank", "double", "towers", "price", "position")]
    if kind == "column to column" and name in ("rank", "double", "towers", "price", "position") and numbers:
        return Q(**{f"{prefix}{name}__gte": F(draw(numbers))})
    return compared(draw, f"{prefix}{name}", partial(value, draw, there, name), ["", "", "__in", "__gt", "__isnull"])


def reference(draw: Draw, relation: Any) -> Q:
    """A condition on the foreign key of a relation, or on the related rows."""
    there = relation.related_model
    if draw([False, False, False, False, True]):
        return Q(**{f"{queried(relation)}__in": there._default_manager.filter(condition(draw, there, 0))})
    return compared(draw, queried(relation), partial(value, draw, there, "pk"), ["", "", "__in", "__isnull"])


def compared(draw: Draw, name: str, one: Callable[[], Any], lookups: Sequence[str]) -> Q:
    """A condition that compares a column with constants."""
    lookup = draw(lookups)
    constants = {"__isnull": lambda: draw([True, False]), "__in": lambda: [one() for _ in range(draw([1, 2, 3]))]}
    return Q(**{f"{name}{lookup}": constants.get(lookup, one)()})


def correlated(draw: Draw, relation: Any) -> QuerySet[Any]:
    """The rows at the other end of a relation, for a subquery."""
    there = relation.related_model
    back = relation.field.name if relation.auto_created and not relation.concrete else relation.target_field.name
    mine = relation.field.target_field.attname if relation.auto_created and not relation.concrete else relation.attname
    return there._default_manager.filter(**{back: OuterRef(mine)}).filter(condition(draw, there, 0))


def ordered(draw: Draw, found: QuerySet[Any], *names: str) -> QuerySet[Any]:
    """Order the queryset randomly but unambiguously. `names` are columns that the primary key does not determine."""
    prefix, _, name = column(draw, found.model, many=False)
    return found.order_by(draw(["", "-"]) + prefix + name, "pk", *names)


def queryset(draw: Draw, model: type[Model]) -> QuerySet[Any]:
    """A random queryset of this model. A slice has an unambiguous order."""
    found = model._default_manager.all()
    for _ in range(draw([0, 1, 1, 2])):
        chosen = condition(draw, model)
        found = found.exclude(chosen) if draw([False, False, False, True]) else found.filter(chosen)
    found = annotated(draw, found) if draw([False, True]) else found
    if draw([False, False, False, True]):
        found = found.distinct()
    shape = draw(["objects", "objects", "objects", "values", "union", "count", "exists", "aggregate", "some of them", "half of an iterator"])
    names: list[str] = []
    if shape == "union":
        return combined(draw, found)
    if shape == "objects":
        found = related(draw, found)
    elif shape in ("values", "some of them"):
        columns = [column(draw, model) for _ in range(draw([1, 2, 3]))]
        names = list(dict.fromkeys(f"{prefix}{name}" for prefix, _, name in columns))
        found = found.values_list(*names)
    if shape in ("some of them", "half of an iterator") or (draw([False, True]) and not (found.query.distinct and shape == "values")):
        found = ordered(draw, found, *names)
        if draw([False, True]):
            start = draw([0, 0, 1, 2])
            found = found[start : start + draw([1, 2, 3])]
    if found.query.is_sliced and shape == "aggregate":
        shape = "count"
    vars(found)["shape"] = shape
    return found


def combined(draw: Draw, found: QuerySet[Any]) -> QuerySet[Any]:
    """A union with another queryset of the same model."""
    model = found.model
    first, second = (model._default_manager.order_by().filter(condition(draw, model)) for _ in range(2))
    prefix, _, name = column(draw, model, many=False)
    if draw([False, True]):
        both = first.union(second, all=draw([True, False])).values_list(prefix + name)
    else:
        both = first.order_by().values_list(prefix + name).union(second.order_by().values_list(prefix + name))
    if draw([False, True]):
        both = both.order_by(prefix + name)[draw([0, 1]) : 3] if not prefix else both
    vars(both)["shape"] = "values"
    return both


def annotated(draw: Draw, found: QuerySet[Any]) -> QuerySet[Any]:
    """Add a random annotation, or none."""
    kind = draw(["F", "Count", "Max", "Subquery", "Exists", "Upper", "Window", "Window filtered"])
    model = found.model
    plural = relations(model)
    single = [each for each in plural if each.many_to_one or each.one_to_many or each.one_to_one]
    if kind == "F":
        prefix, _, name = column(draw, model)
        return found.annotate(extra=F(prefix + name))
    if kind == "Upper" and (words := [name for name in scalars(model) if isinstance(model._meta.get_field(name), models.CharField)]):
        return found.annotate(extra=Upper(draw(words)))
    if kind in ("Count", "Max") and plural:
        relation = draw(plural)
        made = Count(queried(relation), distinct=draw([False, True])) if kind == "Count" else Max(f"{queried(relation)}__pk")
        counted = found.annotate(extra=made)
        return counted.filter(extra__gte=1) if kind == "Count" and draw([False, True]) else counted
    if kind == "Subquery" and single:
        inner = ordered(draw, correlated(draw, draw(single)))
        return found.annotate(extra=Subquery(inner.values(draw(["pk", *scalars(inner.model)]))[:1]))
    if kind == "Exists" and single:
        return found.annotate(extra=Exists(correlated(draw, draw(single))))
    if kind.startswith("Window"):
        function, order = draw([(RowNumber(), "pk"), (Count("pk"), None), (Count("pk"), "pk")])  # ROW_NUMBER() without an order is arbitrary
        made = Window(function, order_by=order, partition_by=draw([None, *map(F, scalars(model)[:2])]))
        with_it = found.annotate(extra=made)
        return with_it.filter(extra__lte=draw([1, 2, 3])) if kind == "Window filtered" else with_it
    return found


def related(draw: Draw, found: QuerySet[Any]) -> QuerySet[Any]:
    """Add select_related(), prefetch_related() or only(), or none of them."""
    model = found.model
    single = relations(model, many=False)
    if draw([False, True]) and single:
        first = draw(single)
        name = attribute(first)
        further = relations(first.related_model, many=False)
        found = found.select_related(f"{name}__{attribute(draw(further))}" if further and draw([False, True]) else name)
    if draw([False, False, True]) and (every := relations(model)):
        relation = draw(every)
        inner = relation.related_model._default_manager.filter(condition(draw, relation.related_model, 0))
        kind = draw(["plain", "queryset", "slice"])
        if kind == "plain" or relation.many_to_one or relation.one_to_one:
            return found.prefetch_related(attribute(relation))
        inner = ordered(draw, inner)
        return found.prefetch_related(Prefetch(attribute(relation), *((inner,) if kind == "queryset" else (inner[draw([0, 1]) : 2], "loaded"))))
    if draw([False, False, True]):
        found = found.only(draw(["pk", *scalars(model)])) if not found.query.select_related else found
    return found


# Results


def shown(found: QuerySet[Any], follow: Sequence[str] = ()) -> Any:
    """Everything that a response could show of a queryset, and of the relations in `follow` of each object."""
    shape = vars(found)["shape"]
    if shape == "count":
        return found.count()
    if shape == "exists":
        return found.exists()
    if shape == "aggregate":
        return found.aggregate(most=Max("pk"), count=Count("pk"))
    if shape == "some of them":
        every = list(Select(found).rows(shown=1))
        return [repr(every[:1]), len(every)]
    if shape == "half of an iterator":
        return [facts(each) for each, _ in zip(found.iterator(chunk_size=2), range(1), strict=False)]
    rows = [facts(each, follow) if isinstance(each, Model) else repr(each) for each in found.all()]
    return rows if found.query.is_sliced else sorted(rows)


def facts(row: Model, follow: Sequence[str] = (), depth: int = 1) -> str:
    """The columns of an object, with the related objects that were loaded."""
    names = [field.attname for field in row._meta.concrete_fields if field.attname in row.__dict__]
    kept = {name: getattr(row, name) for name in names} | ({"extra": row.extra} if "extra" in row.__dict__ else {})
    loaded = {name: facts(other, (), depth + 1) for name, other in row._state.fields_cache.items() if other is not None and depth < 4}
    many = {
        name: sorted(facts(each, (), depth + 1) for each in each_of) for name, each_of in getattr(row, "_prefetched_objects_cache", {}).items() if depth < 4
    }
    if "loaded" in row.__dict__:
        many["loaded"] = sorted(facts(each, (), depth + 1) for each in row.loaded)
    for name in follow:
        try:
            other = getattr(row, name)
        except models.ObjectDoesNotExist:
            other = None
        many[name] = [facts(other)] if isinstance(other, Model) else sorted(facts(each) for each in other.all()) if other is not None else None
    return repr((kept, loaded, many))


# Writes


class Undone(Exception):
    """Raised to roll back a transaction or a savepoint."""


def assigned(draw: Draw, model: type[Model], here: Any = None, *, local: bool = False) -> dict[str, Any]:
    """Random columns of a model, with values to assign."""
    fields = [
        field
        for field in (model._meta.local_concrete_fields if local else model._meta.concrete_fields)
        if not field.primary_key
        and not field.generated
        and (field.name in scalars(model) or (field.is_relation and not getattr(field.remote_field, "parent_link", False)))
    ]
    found = {}
    for field in [draw(fields) for _ in range(draw([1, 1, 2]))] if fields else ():
        if field.is_relation:
            keys = list(field.related_model._default_manager.order_by("pk").values_list(field.target_field.attname, flat=True))
            found[field.attname] = draw([*keys, *([None] if field.null else []), *([] if field.db_constraint else ["nowhere"])] or [None])
        else:
            found[field.name] = value(draw, model, field.name)
    return found


def one_of(draw: Draw, model: type[Model]) -> Any:
    """A random row of this model, or None."""
    return draw(list(model._default_manager.order_by("pk")) or [None])


def new(draw: Draw, model: type[Model]) -> Any:
    """An object to insert. Its id may exist already."""
    fields = {"word": "a", "rank": 1, "towers": 1, "name": "a", "title": "a", "price": 1, "url": "https://x/0"}
    known = {field.name for field in model._meta.concrete_fields}
    made = {name: given for name, given in fields.items() if name in known}
    for field in model._meta.concrete_fields:
        if field.is_relation and not field.null and field.attname not in made and not getattr(field.remote_field, "parent_link", False):
            made[field.attname] = draw(list(field.related_model._default_manager.order_by("pk").values_list("pk", flat=True)) or [None])
    made |= assigned(draw, model)
    if model._meta.pk.get_internal_type() == "CharField":
        made["pk"] = draw(["new", "%", "nowhere", "a"])
    elif not model._meta.pk.is_relation and draw([False, True]):
        made["pk"] = draw([1, 9])
    return model(**made)


def write(draw: Draw, near: type[Model]) -> str:
    """Carry out a random write, usually on this model or near it, and describe it."""
    model = draw([near, near, *(each.related_model for each in relations(near)), draw(POOL)])
    kind = draw(sorted(WRITES))
    WRITES[kind](draw, model)
    return f"{kind} of {model.__name__}"


def perhaps(draw: Draw, near: type[Model]) -> str:
    """Carry out a random write under a savepoint, which is sometimes rolled back, and describe it."""
    try:
        with transaction.atomic():
            done = write(draw, near)
            if draw([False, False, False, True]):
                raise Undone(f"{done}, undone")
    except Undone as undone:
        return str(undone)
    except IntegrityError:
        return "nothing"
    return done


def _save(draw: Draw, model: type[Model], *, locked: bool = False, only: bool = False) -> None:
    found = model._default_manager.select_for_update() if locked else model._default_manager
    row = draw(list(found.order_by("pk")) or [None])
    if row is not None:
        fields = assigned(draw, model)
        for name, given in fields.items():
            setattr(row, name, given)
        row.save(update_fields=list(fields)) if only else row.save()


def _bulk_update(draw: Draw, model: type[Model]) -> None:
    rows = list(model._default_manager.order_by("pk"))[: draw([1, 2])]
    fields = assigned(draw, model)
    for row in rows:
        for name, given in fields.items():
            setattr(row, name, given)
    if rows and fields:
        model._default_manager.bulk_update(rows, [model._meta.get_field(name).name for name in fields])


def _many_to_many(draw: Draw, model: type[Model]) -> None:
    managers = [attribute(each) for each in relations(model) if each.many_to_many or each.one_to_many]
    row = one_of(draw, model)
    if row is None or not managers:
        return
    manager = getattr(row, draw(managers))
    keys = list(manager.model._default_manager.order_by("pk"))
    chosen = [draw(keys) for _ in range(draw([1, 2]))] if keys else []
    way = draw(["add", "remove", "set", "clear", "create"])
    if way == "remove":
        chosen = [each for each in chosen if each in manager.all()]
    if way in ("add", "remove", "set") and hasattr(manager, way):
        getattr(manager, way)(*([chosen] if way == "set" else chosen))
    elif way == "clear" and hasattr(manager, "clear"):
        manager.clear()
    elif way == "create":
        fresh = new(draw, manager.model)
        fresh.save()


def _upsert(draw: Draw, model: type[Model]) -> None:
    fields = assigned(draw, model, local=True)
    if model._meta.parents or not fields:
        return
    names = [model._meta.get_field(name).name for name in fields]
    model._default_manager.bulk_create([new(draw, model)], update_conflicts=True, unique_fields=["pk"], update_fields=names)


def _sql(draw: Draw, model: type[Model]) -> None:
    for name in scalars(model):
        if not model._meta.get_field(name).generated and model._meta.get_field(name) in model._meta.local_concrete_fields:
            with connection.cursor() as cursor:
                cursor.execute(f'UPDATE "{model._meta.db_table}" SET "{name}" = "{name}" WHERE 1 = 0')
                cursor.execute(f'UPDATE "{model._meta.db_table}" SET "{name}" = %s', [value(draw, model, name)])
            return


def _bulk_create(draw: Draw, model: type[Model], **how: Any) -> None:
    if not model._meta.parents:
        model._default_manager.bulk_create([new(draw, model) for _ in range(draw([1, 2]))], **how)


def _update(draw: Draw, model: type[Model], chosen: Q) -> None:
    if fields := assigned(draw, model):
        if draw([False, False, True]) and (numbers := [name for name in ("rank", "price", "towers") if name in scalars(model)]):
            fields[draw(numbers)] = F(numbers[0]) + 1
        model._default_manager.filter(chosen).update(**fields)


WRITES: dict[str, Callable[[Draw, type[Model]], Any]] = {
    "save()": _save,
    "save() after a lock": lambda draw, model: _save(draw, model, locked=True),
    "save(update_fields)": lambda draw, model: _save(draw, model, only=True),
    "save() after a lock, update_fields": lambda draw, model: _save(draw, model, locked=True, only=True),
    "save() of a new row": lambda draw, model: new(draw, model).save(),
    "save(force_insert)": lambda draw, model: new(draw, model).save(force_insert=True),
    "update()": lambda draw, model: _update(draw, model, condition(draw, model)),
    "update() by key": lambda draw, model: _update(draw, model, Q(pk=value(draw, model, "pk"))),
    "update() by keys": lambda draw, model: _update(draw, model, Q(pk__in=[value(draw, model, "pk"), value(draw, model, "pk")])),
    "bulk_update()": _bulk_update,
    "bulk_create()": _bulk_create,
    "bulk_create(ignore_conflicts)": lambda draw, model: _bulk_create(draw, model, ignore_conflicts=True),
    "bulk_create(update_conflicts)": _upsert,
    "delete()": lambda draw, model: (row := one_of(draw, model)) and row.delete(),
    "delete() of a queryset": lambda draw, model: model._default_manager.filter(condition(draw, model)).delete(),
    "_raw_delete()": lambda draw, model: model._default_manager.filter(condition(draw, model))._raw_delete("default"),
    "_raw_delete() by key": lambda draw, model: model._default_manager.filter(pk=value(draw, model, "pk"))._raw_delete("default"),
    "many-to-many": _many_to_many,
    "many-to-many, to draw it twice as often": _many_to_many,
    "update_or_create()": lambda draw, model: (
        model._meta.parents or model._default_manager.update_or_create(pk=value(draw, model, "pk"), defaults=assigned(draw, model))
    ),
    "SQL": _sql,
}
"""Name of a way to write → a function that does it."""


# The rows that a write changed


State = dict[str, dict[Any, dict[str, Any]]]
"""Table → primary key → column → value."""


def state() -> State:
    """All rows of all tracked tables. Columns without a field are left out, because triggers fill them."""
    found: State = {}
    columns_of = {model._meta.db_table: [str(field.column) for field in model._meta.local_concrete_fields] for model in tracked()}
    for table in tables().values():
        columns = columns_of[table.name]
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(map(connection.ops.quote_name, columns))} FROM {connection.ops.quote_name(table.name)}")
            rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
        found[table.name] = {row[table.pk] if table.pk else tuple(row.values()): row for row in rows}
    return found


def not_covered(before: State, after: State, tags: set[str]) -> list[str]:
    """The tags that are missing for these changes."""
    missing: list[str] = []
    for name, table in tables().items():
        for key in before[name].keys() | after[name].keys():
            old, now = before[name].get(key), after[name].get(key)
            if old != now and f"{name}:*" not in tags:
                missing += [tag for tag in _due(table, key, old, now, tags) if tag not in tags]
    return missing


def _due(table: Table, key: Any, old: dict[str, Any] | None, now: dict[str, Any] | None, tags: set[str]) -> Iterator[str]:
    yield table.name
    if table.pk is None or table.pk_text is None:
        yield f"{table.name}:*"
        return
    if old is None or now is None:
        yield f"{table.name}:{'+' if old is None else '-'}"
    if old is not None:
        yield f"{table.name}:{table.pk_text(key)}"
    changed = [column for column in now if old[column] != now[column]] if old and now else []
    for column in changed:
        yield f"{table.name}.{column}"
    if old is not None and now is None:
        yield f"{table.name}-{table.pk_text(key)}"
    for column, text in table.scopes.items() if table.unscoped not in tags else ():
        was, then = [row and row[column] is not None and f"{table.name}.{column}={text(row[column])}" for row in (old, now)]
        if was != then:
            yield from [
                tag for tag in (was and f"{was}-", was and now and f"{table.name}-{table.pk_text(key)}.{column}", then and (then if old else f"{then}+")) if tag
            ]
        elif was and was not in tags:  # otherwise the row left the scope and came back
            yield from (f"{was}.{each}" for each in changed)


# One example


def example(draw: Draw) -> str:
    """Run a queryset, one to three writes, and the queryset again. Returns whether their tags met, and whether the result changed.

    Raises AssertionError if the result changed although no tags met, or if a row changed and was not tagged.
    """
    try:
        with transaction.atomic():
            raise Undone(_example(draw))
    except Undone as undone:
        return str(undone)
    except (FieldError, TypeError, NotSupportedError, DatabaseError):  # Django or the server rejects this query or write
        return "not possible"


def _example(draw: Draw) -> str:
    choices: list[int] = []

    def kept(options: Sequence[Any]) -> Any:
        chosen = draw(range(len(options)))
        choices.append(chosen)
        return options[chosen]

    model = draw(POOL)
    with recorded() as recording:
        found = queryset(kept, model)
        before = shown(found)
    assert recording.complaint is None, recording.complaint
    rows = state()
    done = [perhaps(draw, model) for _ in range(draw([1, 1, 2, 3]))]
    connection.check_constraints()
    tags = connection._collapsed()

    assert not_covered(rows, state(), tags) == [], done
    again = queryset(lambda options: options[choices.pop(0)], model)
    after = shown(again)
    met = not tags.isdisjoint(recording.tags)
    assert met or before == after, (
        f"{done} is not in the next read of {again.query}: it tagged {sorted(tags)}, and that read depends on {sorted(recording.tags)}"
    )
    return f"{'met' if met else 'apart'}, {'the same' if before == after else 'changed'}"
