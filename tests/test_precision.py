"""What each column makes stale. Every column of every model is written in two ways, and twenty-four pages are looked at, before and after."""

import itertools
import re
from collections import Counter
from functools import partial

import pytest
from django.apps import apps
from django.db import transaction
from django.db.models import ForeignKey

from conftest import NEW_YEAR, a_property, clear_the_cache, make_images, saved
from housing.models import Agent, Location, Office, Property, PropertyImage

PAGES = {
    "a": "",  # every property
    "b": "?page_size=1",  # the one before the row that is written
    "c": "the next of b",  # the row
    "d": "the next of c",  # the one after it
    "e": "the previous of c",  # the one before it, walked back to
    "f": "?ordering=created_at&page_size=1",  # the one after it, which is oldest
    "g": "?ordering=price&page_size=1",  # cheaper than the row
    "h": "the next of g",  # the row
    "i": "?ordering=-price&page_size=1",  # dearer
    "j": "?city=Springfield",  # with the row, which leaves it for another
    "k": "?city=else",  # without the row, which enters it
    "l": "?status=available&page_size=1",  # the row is the one too many: when it leaves, so does `next`
    "m": "?status=withdrawn",  # enters
    "n": "?property_type=land",  # enters
    "o": "?agent={row.agent_id}",  # leaves
    "p": "?agent={other.agent_id}",  # enters
    "q": "?office={row.agent.office_id}",  # leaves
    "r": "?office={other.agent.office_id}",  # enters
    "s": "?min_price=300000",  # leaves
    "t": "?max_price=9",  # enters
    "u": "?min_bedrooms=9",  # enters
    "v": "?search=else",  # enters
    "w": "/{row.pk}",
    "x": "/{other.pk}",
}
"""Letter → page. A row goes there and back, so that what it leaves one way it enters the other."""

NEIGHBOURS = {"c": ("b", "next"), "d": ("c", "next"), "e": ("c", "previous"), "h": ("g", "next")}


@pytest.fixture
def portal(transactional_db):
    """Three properties, newest first: the other, to whom things move; the row that is written, none of whose columns is NULL; and one more."""
    places = [Location(city=city, state="IL", zip_code="1", latitude=1, longitude=1) for city in ("else", "Springfield", "Springfield")]
    states = ("available", "available", "pending")
    homes = saved(
        *(
            a_property(number, location=place, status=state, area=100, record_hash=str(number))
            for number, (place, state) in enumerate(zip(places, states, strict=True))
        )
    )
    make_images(*homes[:2])
    PropertyImage.objects.update(caption="Front")
    clear_the_cache()
    return homes


@pytest.fixture
def pages(portal, read):
    """The pages of this portal, as what to ask of a door."""
    found = {letter: page.format(row=portal[1], other=portal[0]) for letter, page in PAGES.items()}
    for letter, (beside, link) in NEIGHBOURS.items():
        found[letter] = read(f"optimized{found[beside]}").json[link]
    return found


@pytest.fixture
def fates(pages, read):
    """`fates(write)`: what became of each page. A capital was stale, and had to be; a small letter was stale for nothing; a dot stayed warm."""
    before = {letter: read(f"cached{page}").body for letter, page in pages.items()}

    def fates(write):
        write()
        responses = {letter: read(f"cached{page}") for letter, page in pages.items()}
        with transaction.atomic():  # where nothing is remembered; and later, for a COMMIT could say what the write forgot to say
            truths = {letter: read(f"cached{pages[letter]}") for letter, response in responses.items() if response.came_from == "hit"}
        return "".join(fate(letter, response, truths.get(letter), write) for letter, response in responses.items())

    def fate(letter, response, truth, write):
        if truth is not None:
            assert truth.came_from == "fwd=bypass; detail=transaction"
            assert response.body == truth.body == before[letter], f"'{PAGES[letter]}' is stale after {write}"
            return "."
        assert (response.status, response.came_from) in ((200, "fwd=stale; stored"), (404, None))  # of the database
        was, before[letter] = before[letter], response.body
        return letter if response.body == was else letter.upper()

    return fates


def blindly(model, key, column, value):
    """A save of what was read without a lock: every column is written."""
    row = model.objects.get(pk=key)
    setattr(row, column, value)
    row.save()


def by_name(model, key, column, value):
    """A save that names its column."""
    row = model.objects.get(pk=key)
    setattr(row, column, value)
    row.save(update_fields=[column])


WAYS = {"save()": blindly, "update_fields": by_name}
"""There, and back: after both a column holds what it held. (A save of what was read under lock is as sure as one that names its columns.)"""


def another(field, other):
    """What else the column may hold, from what its field says of it."""
    if isinstance(field, ForeignKey):
        return getattr(other, field.attname)
    if field.choices:
        return field.choices[-1][0]
    return {"DateTimeField": NEW_YEAR, "DecimalField": 9, "PositiveSmallIntegerField": 9}.get(field.get_internal_type(), "else")


def twin(row):
    """A row like this one, not saved yet."""
    row.pk, row._state.adding = None, True
    for field in row._meta.concrete_fields:
        if field.unique:
            setattr(row, field.attname, None)
    return row


MODELS = list(apps.get_app_config("housing").get_models())

COLUMNS = {model: [field for field in model._meta.concrete_fields if not field.primary_key] for model in MODELS}
"""All but the ids: a row saved under another id is another row."""

ROWS = {
    Property: lambda home: home,
    Agent: lambda home: home.agent,
    Office: lambda home: home.agent.office,
    Location: lambda home: home.location,
    PropertyImage: lambda home: home.images.first(),
}


def writes_of(model):
    """What happens to a model's rows, as the table names it."""
    return [*(f"{model.__name__}.{field.name}" for field in COLUMNS[model]), *(f"{model.__name__} {happens}" for happens in ("updated", "created", "deleted"))]


def carried_out(happens, row, other):
    """A column written in each way, one after another; or the row updated by a queryset, a twin of it created, or the row deleted."""
    model = type(row)
    if happens == "updated":
        column = COLUMNS[model][0]
        yield partial(model.objects.filter(pk=row.pk).update, **{column.attname: another(column, other)})
    elif happens == "created":
        yield twin(model.objects.get(pk=row.pk)).save
    elif happens == "deleted":
        yield model.objects.get(pk=row.pk).delete
    else:
        field = model._meta.get_field(happens)
        was, then = getattr(row, field.attname), another(field, other)
        for way, value in zip(WAYS.values(), itertools.cycle([then, was]), strict=False):
            yield partial(way, model, row.pk, field.attname, value)


TABLE = """
                        save()                    update_fields
Office.name             A.C....H.J....O.Q.S...W.  A.C....H.J....O.Q.S...W.
Office.city             A.C....H.J....O.Q.S...W.  A.C....H.J....O.Q.S...W.
Office updated          A.C....H.J....O.Q.S...W.
Office created          ........................
Office deleted          AbC..fgHiJ.L..O.Q.S...W.
Agent.name              A.C....H.J....O.QrS...W.  A.C....H.J....O.Q.S...W.
Agent.email             A.C....H.J....O.QrS...W.  A.C....H.J....O.Q.S...W.
Agent.office            A.C....H.J....O.QRS...W.  A.C....H.J....O.QRS...W.
Agent updated           A.C....H.J....O.Q.S...W.
Agent created           ........................
Agent deleted           AbC..fgHiJ.L..O.Q.S...W.
Location.city           A.C....H.JK...O.Q.S...W.  A.C....H.JK...O.Q.S...W.
Location.state          A.C....H.Jk...O.Q.S...W.  A.C....H.J....O.Q.S...W.
Location.zip_code       A.C....H.Jk...O.Q.S...W.  A.C....H.J....O.Q.S...W.
Location.latitude       A.C....H.Jk...O.Q.S...W.  A.C....H.J....O.Q.S...W.
Location.longitude      A.C....H.Jk...O.Q.S...W.  A.C....H.J....O.Q.S...W.
Location updated        A.C....H.JK...O.Q.S...W.
Location created        ........................
Location deleted        AbC..fgHi.KL..O.Q.S...W.
Property.title          A.C...gHiJklmnO.QrStuVW.  A.C....H.J....O.Q.S..VW.
Property.description    A.C...gHiJklmnO.QrStuVW.  A.C....H.J....O.Q.S..VW.
Property.property_type  A.C...gHiJklmNO.QrStuvW.  A.C....H.J...NO.Q.S...W.
Property.status         A.C...gHiJkLMnO.QrStuvW.  A.C....H.J.LM.O.Q.S...W.
Property.price          A.C...GHiJklmnO.QrSTuvW.  A.C...GHiJ....O.Q.ST..W.
Property.bedrooms       A.C...gHiJklmnO.QrStUvW.  A.C....H.J....O.Q.S.U.W.
Property.bathrooms      A.C...gHiJklmnO.QrStuvW.  A.C....H.J....O.Q.S...W.
Property.area           A.C...gHiJklmnO.QrStuvW.  A.C....H.J....O.Q.S...W.
Property.location       A.C...gHiJKlmnO.QrStuvW.  A.C....H.JK...O.Q.S...W.
Property.agent          A.C...gHiJklmnOPQRStuvW.  A.C....H.J....OPQRS...W.
Property.created_at     A.C...gHiJklmnO.QrStuvW.  ........................
Property.updated_at     A.C...gHiJklmnO.QrStuvW.  A.C....H.J....O.Q.S...W.
Property.record_hash    A.C...gHiJklmnO.QrStuvW.  a.c....h.j....o.q.s...w.
Property updated        A.C....H.J....O.Q.S..VW.
Property created        AbCdEfghiJklmnO.QrStuV..
Property deleted        Abc.efgHiJ.l..O.Q.S..VW.
PropertyImage.property  ......................WX  ......................WX
PropertyImage.url       ......................W.  ......................W.
PropertyImage.caption   ......................W.  ......................W.
PropertyImage.position  ......................W.  ......................W.
PropertyImage updated   ......................WX
PropertyImage created   .......................X
PropertyImage deleted   .......................X
"""
"""A row for each write, a column for each way: its pages from a to x. A capital was stale, and had to be; a small letter was stale for nothing;
a dot stayed warm. Saves leave `created_at` as it is, and nobody is shown a `record_hash`; a queryset's update(),
a creation and a deletion have one way."""

PROMISED = {re.split(r"\s{2,}", line)[0]: line for line in TABLE.splitlines()[2:]}

PRECISION = {
    "save()": {"stale": 202, "for nothing": 126, "warm": 320},
    "update_fields": {"stale": 186, "for nothing": 9, "warm": 453},
    "updated, created or deleted": {"stale": 81, "for nothing": 32, "warm": 247},
}
"""Way → how many pairs of a write and a page, of 1,656: `stale` are those whose bytes changed, 469 in all."""

PARTS = [(model, writes_of(model)[first : first + 8]) for model in MODELS for first in range(0, len(writes_of(model)), 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "names"), PARTS, ids=[f"{names[0]} to {names[-1]}" for _, names in PARTS])
def test_each_column_makes_stale_what_the_table_says_and_nothing_else(portal, fates, metric, model, names):
    """No page whose bytes change is a hit afterwards; and what stays warm is no less than it was."""
    row, other = ROWS[model](portal[1]), ROWS[model](portal[0])

    measured = {name: [fates(write) for write in carried_out(re.split("[. ]", name)[1], row, other)] for name in names}

    assert [f"{name:24}" + "  ".join(cells) for name, cells in measured.items()] == [PROMISED.get(name) for name in names]
    for name, cells in measured.items():
        for way, pages in zip(WAYS if cells[1:] else ["updated, created or deleted"], cells, strict=True):
            metric("precision", write=name, way=way, pages=pages)


def test_every_column_of_every_model_is_in_the_table():
    """Who adds a column says what it makes stale."""
    assert list(PROMISED) == [name for model in MODELS for name in writes_of(model)]


def test_a_save_that_knows_what_it_changes_makes_hardly_a_page_stale_for_nothing():
    """A blind one cannot tell what it leaves as it was, nor an update() whose rows it writes."""
    counted = {way: Counter({"stale": 0, "for nothing": 0, "warm": 0}) for way in PRECISION}
    for line in PROMISED.values():
        _, *cells = re.split(r"\s{2,}", line)
        for way, cell in zip(WAYS if cells[1:] else ["updated, created or deleted"], cells, strict=True):
            counted[way] += Counter("warm" if page == "." else "stale" if page.isupper() else "for nothing" for page in cell)

    assert counted == PRECISION
