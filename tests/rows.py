"""Reads and writes that several chapters share. The argument `it` is the fixture of this name."""

from django.db import connection, transaction

from housing.models import PropertyImage


def execute(text, *parameters):
    """Execute one statement through a cursor."""
    with connection.cursor() as cursor:
        cursor.execute(text, parameters or None)


def ids(found):
    """The primary keys of a queryset's rows."""
    return [row.pk for row in found]


def put(row, **fields):
    """Update this row with one UPDATE statement."""
    type(row)._base_manager.filter(pk=row.pk).update(**fields)


def image(home, number=0):
    """One image of this property."""
    return PropertyImage.objects.filter(property=home).order_by("id")[number]


def retitled(it):
    put(it.home, title="Other")


def renamed(it):
    put(it.home.agent, name="Other")


def relabelled(it):
    put(it.label, word="Other")


def office_renamed(it):
    put(it.home.agent.office, name="Other")


def save(row, **fields):
    """Read this row again, change it and save it."""
    row = type(row)._base_manager.get(pk=row.pk)
    for name, value in fields.items():
        setattr(row, name, value)
    row.save()


@transaction.atomic
def locked_save(row, **fields):
    """The same after select_for_update(), so that the engine knows the values that the row had."""
    type(row)._base_manager.select_for_update().get(pk=row.pk)
    save(row, **fields)
