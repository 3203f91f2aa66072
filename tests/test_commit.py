"""Transactions. A write invalidates pages when it commits, and a rollback leaves every page warm."""

import logging
from contextlib import ExitStack, contextmanager

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import IntegrityError, OperationalError, ProgrammingError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django_redis import get_redis_connection

from housing.freshness.settings import conf
from housing.freshness.tracking import MANY_ROWS, MANY_SCOPED
from housing.models import Office, Property, PropertyImage
from tests.fixtures.rows import execute

# Rollbacks and savepoints

savepoint = getattr(transaction, "savepoint_create", transaction.savepoint)
"""Django 6.1 renames this function."""


def test_a_rollback_leaves_every_page_warm(home, warm, read):
    """Redis first hears of a write at COMMIT, so there is nothing to take back."""
    warm()
    warm(f"cached/{home.pk}")

    with transaction.atomic():
        home.price = 1
        home.save()
        home.agent.delete()
        transaction.set_rollback(True)

    assert read("cached").came_from == "hit"
    assert read(f"cached/{home.pk}").came_from == "hit"


def test_a_rollback_to_a_savepoint_leaves_the_pages_of_its_own_writes_warm(twenty_properties, warm, read):
    """The tags of a write are dropped together with the write."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        first.save()
        with transaction.atomic():
            second.save()
            transaction.set_rollback(True)

    assert read(f"cached/{first.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{second.pk}").came_from == "hit"


def test_a_write_under_a_released_savepoint_invalidates_its_page(twenty_properties, warm, read):
    """A released savepoint becomes part of the transaction around it."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    with transaction.atomic(), transaction.atomic():
        first.save()
        with transaction.atomic():
            second.save()

    assert read(f"cached/{first.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{second.pk}").came_from == "fwd=stale; stored"


@pytest.mark.parametrize("released", [True, False], ids=["released with the savepoint around it", "left open"])
def test_a_write_under_a_savepoint_that_is_never_released_invalidates_its_page(twenty_properties, warm, read, released):
    """RELEASE also releases the savepoints inside, and COMMIT releases all of them."""
    homes = twenty_properties[:3]
    for home in homes:
        warm(f"cached/{home.pk}")

    with transaction.atomic():
        homes[0].save()
        mine = savepoint()
        homes[1].save()
        savepoint()
        homes[2].save()
        if released:
            transaction.savepoint_commit(mine)

    assert [read(f"cached/{home.pk}").came_from for home in homes] == ["fwd=stale; stored"] * 3


def test_a_write_before_an_empty_savepoint_invalidates_its_page(home, warm, read):
    """The open savepoint must not hide the tags that were there before it."""
    warm()

    with transaction.atomic():
        home.save()
        savepoint()

    assert read("cached").came_from == "fwd=stale; stored"


def test_a_write_after_a_rollback_to_a_savepoint_invalidates_its_page(home, warm, read):
    """ROLLBACK TO keeps the savepoint open, and writes that follow it count."""
    warm(f"cached/{home.pk}")

    with transaction.atomic():
        mine = savepoint()
        home.agent.save()
        transaction.savepoint_rollback(mine)
        home.save()
        transaction.savepoint_commit(mine)

    assert read(f"cached/{home.pk}").came_from == "fwd=stale; stored"


@pytest.mark.only("real")
def test_a_lock_taken_under_a_savepoint_ends_with_a_rollback_to_it(home, warm, read_the_list, elsewhere):
    """PostgreSQL releases the lock with that rollback, so another process changes the row before it is saved. (SQLite's lock lasts.)"""
    with transaction.atomic():
        mine = savepoint()
        locked = Property.objects.select_for_update().get(pk=home.pk)
        transaction.savepoint_rollback(mine)
        elsewhere(lambda: Property.objects.filter(pk=home.pk).update(status="sold"))
        elsewhere(lambda: warm(status="available"))
        locked.save()

    assert read_the_list(status="available")[0]["id"] == home.pk


def test_a_failed_write_leaves_every_page_warm(home, warm, read):
    """The database wrote nothing."""
    warm()

    with pytest.raises(IntegrityError):
        Property.objects.create(pk=home.pk, title="Twice", price=1, location=home.location, agent=home.agent)

    assert read("cached").came_from == "hit"


def test_a_failed_write_inside_a_transaction_undoes_only_itself(twenty_properties, warm, read):
    """Django rolls back to the savepoint before the failed write. The earlier write of the transaction is committed."""
    first, second = twenty_properties[:2]
    warm(f"cached/{first.pk}")
    warm(f"cached/{second.pk}")

    with transaction.atomic():
        first.save()
        with pytest.raises(IntegrityError), transaction.atomic():
            Property(pk=second.pk, title="Twice", price=1, location=second.location, agent=second.agent).save(force_insert=True)

    assert read(f"cached/{first.pk}").came_from == "fwd=stale; stored"
    assert read(f"cached/{second.pk}").came_from == "hit"


# COMMIT


def test_an_uncommitted_write_is_neither_shown_nor_cached(home, read, elsewhere, client):
    """Other connections read the old price until COMMIT, and the new price right after it."""

    def read_elsewhere():
        return read("cached").rows[0]["price"]

    with transaction.atomic():
        home.price = 1
        home.save()
        assert elsewhere(read_elsewhere) == "300000.00"
        assert elsewhere(read_elsewhere) == "300000.00"

    assert elsewhere(read_elsewhere) == "1.00"


def test_a_write_is_in_the_next_read_although_an_on_commit_hook_raises(home, warm, read_the_list):
    """Django skips the `on_commit` hooks after one that raises. The cache does not depend on such a hook."""
    warm()

    def fail():
        raise RuntimeError("The mail could not be sent.")

    with pytest.raises(RuntimeError), transaction.atomic():
        transaction.on_commit(fail)
        home.price = 2
        home.save()

    assert read_the_list()[0]["price"] == "2.00"


def test_a_failed_commit_invalidates_nothing(home, warm, read):
    """A deferred constraint is checked at COMMIT, when the lease is already open. The lease is withdrawn and leaves no record."""
    warm()

    with pytest.raises(IntegrityError), transaction.atomic():
        PropertyImage.objects.create(property_id=10**9, url="https://images.example.com/nobody.jpg")
        home.save()

    assert read("cached").came_from == "hit"


@pytest.mark.only("embedded")
def test_a_write_whose_commit_is_retried_is_in_the_next_read(home, warm, read, elsewhere, redis_clock, settings):
    """With autocommit off, the transaction survives a failed COMMIT, so the second COMMIT tags the same writes again. (PostgreSQL ends the transaction.)"""
    transaction.set_autocommit(False)
    try:
        execute("PRAGMA defer_foreign_keys = ON")
        image = PropertyImage.objects.create(property_id=10**9, url="https://images.example.com/nobody.jpg")
        home.price = 5
        home.save()
        with pytest.raises(IntegrityError):
            transaction.commit()
        redis_clock.seconds += conf.LEASE + 1
        elsewhere(warm)
        image.property = home
        image.save()
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read("cached").rows[0]["price"] == "5.00"


@pytest.fixture
def lost_at_commit(monkeypatch):
    """`with lost_at_commit():` the connection is lost before the reply to COMMIT arrives."""

    def lose_the_connection(self):
        self.connection.commit()
        self.connection.close()
        raise OperationalError("server closed the connection unexpectedly")

    @contextmanager
    def lost_at_commit():
        with monkeypatch.context() as patched:
            patched.setattr(BaseDatabaseWrapper, "_commit", lose_the_connection)
            with pytest.raises(OperationalError, match="unexpectedly"):
                yield

    return lost_at_commit


def test_a_commit_whose_outcome_is_unknown_leaves_its_lease_open(home, warm, read, lost_at_commit):
    """The COMMIT may have happened, so readers read from the database until the lease runs out."""
    warm()

    with lost_at_commit():
        home.save()

    assert read("cached").came_from == "fwd=miss; detail=leased"


def test_a_rollback_on_the_next_connection_does_not_withdraw_the_lease_of_a_commit_whose_outcome_is_unknown(home, warm, read, lost_at_commit):
    """A new connection knows nothing of the transaction on the lost one."""
    warm()

    transaction.set_autocommit(False)
    home.save()
    with lost_at_commit():
        transaction.commit()
    connection.close()
    with transaction.atomic():
        transaction.set_rollback(True)

    assert read("cached").came_from == "fwd=miss; detail=leased"


def test_ctrl_c_before_the_commit_leaves_nothing_written(home, read, warm, monkeypatch):
    """Without a lease there is no COMMIT, whatever the reason."""
    warm()

    def interrupted(tags, since, oldest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("housing.freshness.connection.journal.lease", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Property.objects.filter(pk=home.pk).update(price=1)

    assert read("optimized").rows[0]["price"] == "300000.00"
    assert read("cached").came_from == "hit"


def test_a_lease_that_cannot_be_closed_is_left_to_run_out(home, warm, read, redis_unreachable, monkeypatch, caplog):
    """The write is committed, so its caller gets no error. Readers read from the database until the lease runs out."""
    warm()
    commit = BaseDatabaseWrapper._commit
    with ExitStack() as stack:
        monkeypatch.setattr(BaseDatabaseWrapper, "_commit", lambda self: (commit(self), stack.enter_context(redis_unreachable())))
        home.price = 3
        home.save()
        monkeypatch.undo()

    logged, changed = caplog.messages
    assert logged.startswith("Committed, but the lease could not be closed: Redis at ")
    assert logged.endswith(" Readers query the database until it expires.")
    assert changed.startswith(f"[ORM] Property {home.pk} changed. Stale: ")
    response = read("cached")
    assert (response.rows[0]["price"], response.came_from) == ("3.00", "fwd=miss; detail=leased")


def test_a_lease_that_cannot_be_withdrawn_is_left_to_run_out(home, warm, read, redis_unreachable, monkeypatch, caplog):
    """The transaction is rolled back, but readers cannot know that while Redis is unreachable."""
    warm()

    with ExitStack() as stack:

        def fail(self):
            stack.enter_context(redis_unreachable())
            raise IntegrityError("a deferred constraint")

        monkeypatch.setattr(BaseDatabaseWrapper, "_commit", fail)
        with pytest.raises(IntegrityError):
            home.save()
        monkeypatch.undo()

    [logged] = caplog.messages
    assert logged.startswith("Rolled back, but the lease could not be withdrawn: Redis at ")
    assert logged.endswith(" Readers query the database until it expires.")
    assert read("cached").came_from == "fwd=miss; detail=leased"


def test_a_write_in_a_transaction_managed_by_hand_is_in_the_next_read(home, warm, read_the_list):
    """`transaction.commit()` takes a lease as the end of `atomic()` does."""
    warm()
    transaction.set_autocommit(False)
    try:
        home.price = 4
        home.save()
        transaction.commit()
        assert connection.in_transaction
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read_the_list()[0]["price"] == "4.00"


@pytest.mark.only("embedded")
def test_a_write_committed_by_switching_autocommit_on_is_in_the_next_read(home, warm, read_the_list):
    """SQLite's driver then commits an open transaction silently, so the engine takes a lease for it. (PostgreSQL's driver refuses.)"""
    warm()
    transaction.set_autocommit(False)
    home.price = 4
    home.save()
    transaction.set_autocommit(True)

    assert read_the_list()[0]["price"] == "4.00"


@pytest.mark.only("embedded")
def test_switching_autocommit_off_again_commits_nothing(home, read):
    """Autocommit is off already, so nothing changes. (Psycopg refuses to set autocommit inside a transaction.)"""
    transaction.set_autocommit(False)
    try:
        home.price = 4
        home.save()
        transaction.set_autocommit(False)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read("optimized").rows[0]["price"] == "300000.00"


@pytest.mark.only("real")
@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit_is_not_set_inside_a_transaction(home, read, autocommit):
    """Psycopg refuses it, since it could not tell what is committed. (SQLite has no such state.)"""
    transaction.set_autocommit(False)
    home.price = 4
    home.save()
    try:
        with pytest.raises(ProgrammingError, match="INTRANS"):
            transaction.set_autocommit(autocommit)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)

    assert read("optimized").rows[0]["price"] == "300000.00"


def test_a_lost_connection_drops_the_tags_of_its_uncommitted_writes(home, warm, read):
    """The database rolled the transaction back when the connection was lost."""
    warm()
    transaction.set_autocommit(False)
    home.save()
    connection.close()

    assert not connection.uncommitted
    assert read("cached").came_from == "hit"


# Many rows


@pytest.mark.parametrize(("rows", "tagged"), [(MANY_ROWS - 2, "row by row"), (MANY_ROWS - 1, "as a whole")])
def test_a_table_with_many_written_rows_is_tagged_as_a_whole(transactional_db, caplog, rows, tagged):
    """One tag replaces many, so the script that takes a lease stays short. Besides its rows, an UPDATE tags the table and the column."""
    offices = Office.objects.bulk_create(Office(name=f"Branch {number}") for number in range(rows))

    with transaction.atomic():
        for office in offices:
            office.name += ", renamed"
            office.save(update_fields=["name"])
        tags = connection._collapsed()

    assert tags == {"as a whole": {"housing_office", "housing_office:*"}}.get(
        tagged, {"housing_office", "housing_office.name"} | {f"housing_office:{office.pk}" for office in offices}
    )


def test_the_memory_of_a_transaction_does_not_grow_with_its_writes(transactional_db):
    """An import of a million rows is one transaction. After the tag of the whole table, more tags and more lines of the log would tell nothing."""
    with transaction.atomic():
        for number in range(MANY_ROWS + MANY_SCOPED + 10):
            Office.objects.create(name=f"Branch {number}").save(update_fields=["name"])
        [scope] = connection.scopes

        assert len(scope.tags["housing_office"]) <= MANY_ROWS + MANY_SCOPED + 3, "with the last write's tags of the table, the column and the row"
        assert len(scope.changes) <= MANY_ROWS
        assert {"housing_office", "housing_office:*"} <= connection._collapsed()
        assert len(connection._collapsed()) <= MANY_ROWS


def test_after_the_tag_of_all_scopes_a_transaction_keeps_no_more_of_single_ones(transactional_db):
    """They would tell nothing, and make the lease of a long import longer."""
    with transaction.atomic():
        for name, number in (("first", MANY_ROWS + MANY_SCOPED + 1), ("second", MANY_SCOPED)):
            connection.tag("housing_location", {f"housing_location.city={name}{each}" for each in range(number)})

        assert connection._collapsed() == {"housing_location:?"}


def test_a_transaction_that_writes_many_rows_is_in_the_next_read(twenty_properties, warm, read_the_list):
    """The journal stays small, because each table is one tag."""
    warm()

    with transaction.atomic():
        for number in range(MANY_ROWS + 1):
            Office.objects.create(name=f"Branch {number}")
        for office in Office.objects.all():
            office.name = "Merged"
            office.save()

    assert {row["agent"]["office"]["name"] for row in read_the_list()} == {"Merged"}
    assert get_redis_connection("default").zcount(cache.make_key("journal"), 0, "+inf") < 6


# The log


def test_a_change_is_one_line_in_the_log(home, caplog):
    """The line says which row changed and which tags were invalidated. (Those of its columns within scopes follow from these.) It is logged after the COMMIT,
    because a rollback would undo both.
    """
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        PropertyImage.objects.filter(pk=home.images.first().pk).update(position=7)
        assert caplog.messages == []

    [message] = caplog.messages
    image = home.images.last()
    tags = ["", ".position", f":{image.pk}"]
    assert message == f"[ORM] PropertyImage {image.pk} changed. Stale: {', '.join(f'housing_propertyimage{tag}' for tag in tags)}."


def test_a_change_of_many_rows_is_a_short_line_in_the_log(transactional_db, caplog):
    """Each row is in scopes of its own. An import of a million rows would keep them all, and nobody would read them."""
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        connection.tag("housing_property", {f"housing_property.source_id={number}" for number in range(MANY_SCOPED + 1)}, "Many rows created.")

    assert caplog.messages == ["Many rows created. Stale: housing_property:?."]


def test_a_change_under_a_savepoint_is_logged_if_the_savepoint_is_kept(transactional_db, caplog):
    """A rollback to the savepoint undoes the change, so there is nothing to log."""
    released, dropped, left_open = Office.objects.bulk_create(Office(name=f"Branch {number}") for number in range(3))
    caplog.clear()
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        for office in (released, dropped):
            with transaction.atomic():
                Office.objects.filter(pk=office.pk).update(name="Renamed")
                transaction.set_rollback(office is dropped)
        savepoint()
        Office.objects.filter(pk=left_open.pk).update(name="Renamed")

    assert caplog.messages == [
        f"[ORM] Office {office.pk} changed. Stale: housing_office, housing_office.name, housing_office:{office.pk}." for office in (released, left_open)
    ]


def test_a_creation_and_a_deletion_are_one_line_each_in_the_log(home, caplog):
    """Both also tag the property whose page shows the image."""
    with caplog.at_level(logging.INFO, "housing"):
        image = PropertyImage.objects.create(property=home, url="https://images.example.com/x.jpg")
        key = image.pk
        image.delete()

    table, owner = "housing_propertyimage", f"housing_propertyimage.property_id={home.pk}"
    assert caplog.messages == [
        f"[ORM] PropertyImage {key} created. Stale: {table}, {owner}+, {table}:+.",
        f"[ORM] PropertyImage {key} deleted. Stale: {table}, {table}-{key}, {owner}-, {table}:-, {table}:{key}.",
    ]


def test_a_write_that_invalidates_nothing_is_not_logged(home, caplog):
    """No cached page depends on an untracked table."""
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        home.save(update_fields=["price"])
        User.objects.create_user("somebody")

    assert [message.partition(" changed")[0] for message in caplog.messages] == [f"[ORM] Property {home.pk}"]


def test_repeated_writes_to_unknown_rows_are_one_line_in_the_log(home, caplog):
    """One line for each of many such statements would flood the log."""
    with caplog.at_level(logging.INFO, "housing"), transaction.atomic():
        for price in range(3):
            Property.objects.filter(pk=home.pk).update(id=home.pk, price=price)
            execute("UPDATE housing_property SET price = 3")

    assert caplog.messages == [
        "[ORM] Property (rows unknown) changed. Stale: housing_property, housing_property:*.",
        "[SQL] housing_property written (rows unknown). Stale: housing_property, housing_property:*.",
    ]
