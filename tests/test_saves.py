"""Saves. The engine asks the database which columns a save changes. After select_for_update() it knows them already."""

from contextlib import contextmanager

import pytest
from django.db import connection, transaction
from django.db.models import Value
from django.utils import timezone

from housing.freshness import ours
from housing.freshness.changes import paired
from housing.freshness.tracking import MANY_ROWS
from housing.models import Location, Property, PropertyImage

# Unlocked saves, and saves after select_for_update()


def test_an_unlocked_save_tags_only_the_columns_whose_stored_values_differ(home, warm, read):
    """`save()` writes every column. The UPDATE returns what each row held before, so pages that filter by unchanged columns stay warm."""
    warm(search="castle")
    warm(max_price=5)

    home.price = 5
    home.save()

    assert read("cached", search="castle").came_from == "hit"
    assert [row["price"] for row in read("cached", max_price=5).rows] == ["5.00"]


@pytest.mark.parametrize("way", ["save()", "update()", "update() by a condition"])
def test_an_update_sends_at_most_one_statement_more_than_django(home, queries, way):
    """PostgreSQL returns the old values with the UPDATE. SQLite has no RETURNING for them, so they are read first, under the write lock."""
    writes = {
        "save()": home.save,
        "update()": lambda: Property.objects.filter(pk=home.pk).update(price=5),
        "update() by a condition": lambda: Property.objects.filter(price__gt=5).update(price=5),
    }
    statements = {"postgresql": 1, "sqlite": 2}[connection.vendor]
    with transaction.atomic(), queries.exactly(statements, because="an UPDATE, and on SQLite a SELECT of the old values before it"):
        writes[way]()


def test_an_update_by_a_condition_leaves_pages_of_other_rows_warm(twenty_properties, warm, read):
    """The database returns which rows it changed, whatever the condition is."""
    home, other = twenty_properties[0], twenty_properties[10]
    warm(f"cached/{home.pk}")
    warm(f"cached/{other.pk}")

    assert Property.objects.filter(title=home.title, agent__name=home.agent.name).update(description="Renovated") == 1

    assert read(f"cached/{other.pk}").came_from == "hit"
    assert read(f"cached/{home.pk}").json["description"] == "Renovated"


def test_values_of_other_rows_after_an_update_are_unknown():
    """A trigger of the database may write other rows. Then the write counts as one to rows whose old values are unknown."""
    assert paired([(1, "a")], [(2, "b")]) is None
    assert paired([(1, "a")], [(1, "a"), (2, "b")]) is None
    assert paired([(1, "a")], [(1, "b")]) == [((1, "a"), (1, "b"))]


@pytest.mark.only("real")
def test_each_version_of_postgresql_returns_the_old_values_with_the_update(twenty_properties, warm, read, queries, monkeypatch):
    """Before PostgreSQL 18 the same statement reads them under a lock, and updates those. (A newer server runs the older statement, too.)"""
    monkeypatch.setattr(ours(), "pg_version", 150_000)
    home, other = twenty_properties[0], twenty_properties[10]
    for detail in (home, other):
        warm(f"cached/{detail.pk}")
    warm(status="sold")

    with queries.exactly(3, because="one for each write"):
        home.save()
        assert Property.objects.filter(title=home.title, bedrooms=3).update(description="Renovated") == 1
        assert Property.objects.filter(pk=home.pk, bedrooms=4).update(description="Ruined") == 0

    assert read("cached", status="sold").came_from == read(f"cached/{other.pk}").came_from == "hit"
    assert read(f"cached/{home.pk}").json["description"] == "Renovated"
    assert Property.objects.update(price=7) == 20
    assert {row["price"] for row in read("cached").rows} == {"7.00"}


def test_a_delete_by_a_condition_leaves_pages_of_other_rows_warm(twenty_properties, warm, read):
    """It returns the rows that it deleted, too."""
    home, other = twenty_properties[0], twenty_properties[10]
    warm(f"cached/{home.pk}")
    warm(f"cached/{other.pk}")

    PropertyImage.objects.filter(property__title=home.title)._raw_delete("default")

    assert read(f"cached/{other.pk}").came_from == "hit"
    assert read(f"cached/{home.pk}").json["images"] == []


@pytest.mark.parametrize(("rows", "is_known"), [(MANY_ROWS - 3, True), (MANY_ROWS + 1, False)])
@pytest.mark.parametrize("way", ["update", "delete"])
def test_a_write_of_more_than_a_hundred_rows_counts_as_a_write_of_all(home, warm, read, way, rows, is_known):
    """Their tags would make the lease long. The number of rows that Django returns is right all the same."""
    images = PropertyImage.objects.bulk_create(PropertyImage(property=home, url=f"https://x/{number}", position=7) for number in range(rows))
    other = Property.objects.create(title="Other", price=1, location=home.location, agent=home.agent)
    warm(f"cached/{other.pk}")
    some = PropertyImage.objects.filter(position__gte=len(images) and 7)

    assert (some.update(position=8) if way == "update" else some._raw_delete("default")) == rows

    assert read(f"cached/{other.pk}").came_from == ("hit" if is_known else "fwd=stale; stored")
    assert all(image["position"] == 8 for image in read(f"cached/{home.pk}").json["images"][2:])


def test_an_update_that_matches_no_row_leaves_pages_warm(home, warm, read):
    """The database says that it changed nothing."""
    warm()

    assert Property.objects.filter(price=10**9).update(price=1) == 0

    assert read("cached").came_from == "hit"


def test_an_unlocked_save_that_reverts_another_change_is_in_the_next_read(home, warm, read_the_list):
    """`save()` writes every column of the object back, including columns that another process has changed since it was read."""
    stale_copy = Property.objects.get(pk=home.pk)
    Property.objects.filter(pk=home.pk).update(status="sold")
    warm(status="available")
    assert len(read_the_list(status="available")) == 19

    stale_copy.save()

    assert len(read_the_list(status="available")) == 20


def test_a_save_after_select_for_update_tags_only_the_columns_that_differ(home, warm, read):
    """Under the lock the old values are known, so pages that filter by other columns stay warm."""
    warm(city="Shelbyville")
    warm(max_price=5)

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
        locked.price = 5
        locked.save()

    assert read("cached", city="Shelbyville").came_from == "hit"
    assert [row["price"] for row in read("cached", max_price=5).rows] == ["5.00"]


@pytest.fixture
def sold_meanwhile(home, warm, elsewhere):
    """`sold_meanwhile()`: another process sells the newest property and warms a page that no longer has it. Only the tag of `status` invalidates that page."""

    def sold_meanwhile():
        elsewhere(lambda: Property.objects.filter(pk=home.pk).update(status="sold"))
        elsewhere(lambda: warm(status="available"))

    return sold_meanwhile


@pytest.mark.only("embedded")
def test_a_save_after_select_for_update_without_a_transaction_tags_every_column(home, read_the_list, sold_meanwhile):
    """Without a transaction the lock ends with its statement. (PostgreSQL refuses select_for_update() there.)"""
    locked = Property.objects.select_for_update().filter(pk=home.pk)[0]
    sold_meanwhile()

    locked.save()

    assert len(read_the_list(status="available")) == 20


@pytest.mark.only("embedded")
def test_without_an_immediate_transaction_an_update_tags_every_column(home, warm, read):
    """A deferred transaction takes the write lock at its first write, so another process may write between a read and the UPDATE. A DELETE whose rows are
    unknown tags the table. (SQLite only.)
    """
    warm(status="sold")

    with mode(connection, "DEFERRED"):
        home.save()
    assert read("cached", status="sold").came_from == "fwd=stale; stored"

    warm(f"cached/{home.pk}")
    with mode(connection, "DEFERRED"):
        PropertyImage.objects.filter(position__gte=0)._raw_delete("default")
    assert read(f"cached/{home.pk}").json["images"] == []


@contextmanager
def mode(connection, chosen):
    """Begin the transactions of this connection in another mode."""
    kept, connection.transaction_mode = connection.transaction_mode, chosen
    try:
        yield
    finally:
        connection.transaction_mode = kept


def test_iterating_again_over_locked_rows_keeps_the_values_that_were_read(home, warm, read_the_list):
    """A second loop over the queryset sends no query. The engine compares with the values of the first, not with those assigned since."""
    warm(status="sold")

    with transaction.atomic():
        locked = Property.objects.select_for_update().filter(pk=home.pk)
        for mine in locked:
            mine.status = "sold"
        for mine in locked:
            mine.save()

    assert len(read_the_list(status="sold")) == 1


def test_a_save_after_a_locked_read_of_values_is_in_the_next_read(home, warm, read_the_list):
    """`values_list()` returns no object that could be saved, so the lock does not count for the row."""
    with transaction.atomic():
        assert list(Property.objects.select_for_update().filter(pk=home.pk).values_list("status", flat=True)) == ["available"]
        mine = Property.objects.get(pk=home.pk)
        mine.status = "sold"
        mine.save()

    assert len(read_the_list(status="sold")) == 1


def test_a_lock_ends_with_its_transaction(home, read_the_list, sold_meanwhile):
    """Another process can write the row as soon as the transaction is over."""
    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
    sold_meanwhile()

    locked.save()

    assert len(read_the_list(status="available")) == 20


def test_a_lock_holds_inside_a_later_savepoint(home, warm, read):
    """The lock belongs to the transaction, and a savepoint does not end it."""
    warm(city="Shelbyville")

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
        with transaction.atomic():
            locked.price = 5
            locked.save()

    assert read("cached", city="Shelbyville").came_from == "hit"


def test_a_lock_still_counts_after_refresh_from_db(home, warm, read):
    """The lock belongs to the transaction, so a second read of the row without one changes nothing."""
    warm(status="sold")

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=home.pk)
        locked.refresh_from_db()
        locked.save()

    assert read("cached", status="sold").came_from == "hit"


def test_saving_a_locked_image_needs_no_query_for_its_old_property(twenty_properties, queries):
    """Under the lock, the property that the image had cannot have changed."""
    first, second = twenty_properties[:2]
    with transaction.atomic():
        image = PropertyImage.objects.select_for_update().filter(property=first)[0]
        with queries.exactly(1, because="one UPDATE; the old property is known from the locked read"):
            image.property = second
            image.save()


def test_saving_a_locked_image_unchanged_leaves_other_pages_warm(twenty_properties, warm, read, queries):
    """Nothing has changed, so no page of another property depends on it."""
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")
    with transaction.atomic(), queries.exactly(2, because="one SELECT, which leaves the caption out, and one UPDATE"):
        image = PropertyImage.objects.select_for_update().defer("caption").filter(property=first)[0]
        image.save()

    assert read(f"cached/{second.pk}").came_from == "hit"


def test_a_lock_does_not_follow_an_object_to_another_id(twenty_properties, warm, read):
    """Saved under another id, the object overwrites a row that was never locked and whose old values are unknown."""
    first, second = twenty_properties[:2]
    Property.objects.filter(pk=second.pk).update(status="sold")
    warm(status="available", page_size=100)

    with transaction.atomic():
        locked = Property.objects.select_for_update().get(pk=first.pk)
        locked.pk = second.pk
        locked.save()

    assert len(read("cached", status="available", page_size=100).rows) == 20


@pytest.mark.parametrize("way", ["save", "delete"])
def test_a_locked_image_with_another_id_counts_as_another_image(twenty_properties, warm, read, way):
    """The lock is on the row that was read, and not on the one that is written."""
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        locked = PropertyImage.objects.select_for_update().filter(property=first)[0]
        locked.pk = second.images.first().pk
        getattr(locked, way)()

    assert len(read(f"cached/{second.pk}").json["images"]) == 1


@pytest.mark.only("embedded")
def test_a_select_for_update_before_the_driver_begins_a_transaction_is_no_lock(home, warm, read, elsewhere):
    """With autocommit off, SQLite's driver begins a transaction at the first write, so the read locks nothing. (PostgreSQL's driver begins one at once.)"""
    transaction.set_autocommit(False)
    try:
        locked = Property.objects.select_for_update().get(pk=home.pk)
        elsewhere(lambda: Property.objects.filter(pk=home.pk).update(status="sold"))
        elsewhere(lambda: warm(status="available", page_size=100))
        locked.save()
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert len(read("cached", status="available", page_size=100).rows) == 20


@pytest.mark.only("real")
def test_a_lock_on_a_joined_row_is_no_lock_on_the_row_itself(home, read_the_list, sold_meanwhile):
    """`of=("agent",)` locks only agents, so another process sells the property before it is saved. (SQLite locks the whole database.)"""
    with transaction.atomic():
        mine = Property.objects.select_related("agent").select_for_update(of=("agent",)).get(pk=home.pk)
        sold_meanwhile()
        mine.save()

    assert len(read_the_list(status="available")) == 20


# Saves that only the database can resolve


def test_saving_a_deleted_row_creates_it_again_and_is_in_the_next_read(home, warm, read_the_list):
    """Django's save() inserts the row if its UPDATE finds none, so the list must be invalidated as for a new row."""
    ghost = Property.objects.get(pk=home.pk)
    home.delete()
    warm()

    ghost.save()

    assert read_the_list()[0]["id"] == ghost.pk


FORMS_OF_AN_ID = {"a float": float, "with a leading zero": "0{}".format, "with a leading space": " {}".format}
"""Ids as they come from files and forms. Django converts them to integers only when it builds the SQL."""


@pytest.mark.parametrize("form", FORMS_OF_AN_ID)
def test_an_image_whose_property_id_has_another_form_is_in_the_next_read(home, warm, read, form):
    """The tag must be made from the id as it is in the database."""
    warm(f"cached/{home.pk}")

    PropertyImage.objects.create(property_id=FORMS_OF_AN_ID[form](home.pk), url="https://images.example.com/new.jpg")

    assert len(read(f"cached/{home.pk}").json["images"]) == 3


@pytest.mark.parametrize("form", FORMS_OF_AN_ID)
def test_a_row_whose_id_has_another_form_is_in_the_next_read(home, warm, read, form):
    """The tag must be made from the id as it is in the database."""
    warm(f"cached/{home.pk}")

    Property(pk=FORMS_OF_AN_ID[form](home.pk), title="Other", price=1, location=home.location, agent=home.agent).save()

    assert read(f"cached/{home.pk}").json["title"] == "Other"


@pytest.mark.parametrize("is_locked", [False, True], ids=["unlocked", "locked"])
def test_an_image_whose_property_id_is_an_expression_is_in_the_next_read(twenty_properties, warm, read, is_locked):
    """Only the database evaluates an expression. An unlocked save asks it for the result, and after a lock the whole table is tagged."""
    first, second = twenty_properties[:2]
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        image = (PropertyImage.objects.select_for_update() if is_locked else PropertyImage.objects).filter(property=first)[0]
        image.property_id = Value(second.pk)
        image.save()

    assert len(read(f"cached/{second.pk}").json["images"]) == 3


def test_a_row_saved_under_a_given_id_is_in_the_next_read(home, warm, read_the_list):
    """The row may exist already, so the save counts as an update and as a creation."""
    warm()
    warm(city="Shelbyville")

    Property(pk=home.pk, title="Other", price=1, location=Location.objects.create(city="Shelbyville"), agent=home.agent, created_at=timezone.now()).save()

    assert read_the_list()[0]["title"] == "Other"
    assert len(read_the_list(city="Shelbyville")) == 1
