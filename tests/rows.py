"""Acts on rows that several chapters share. Their argument `it` is the fixture of this name."""

from django.db import transaction

from housing.models import PropertyImage


def ids(found):
    """The keys of a queryset's rows."""
    return [row.pk for row in found]


def put(row, **fields):
    """An UPDATE of this row."""
    type(row)._base_manager.filter(pk=row.pk).update(**fields)


def image(home, number=0):
    """One of the images of a property."""
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
    """This row, read again, changed and saved."""
    row = type(row)._base_manager.get(pk=row.pk)
    for name, value in fields.items():
        setattr(row, name, value)
    row.save()


@transaction.atomic
def locked_save(row, **fields):
    """The same after a lock, by which the engine knows what the row held."""
    type(row)._base_manager.select_for_update().get(pk=row.pk)
    save(row, **fields)
