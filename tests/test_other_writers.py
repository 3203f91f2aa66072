"""Other writers. A write of another program is in the reads after the next verification: on PostgreSQL, triggers write its tags to the outbox.

T is this application, X another program, V a watchman.
"""

from contextlib import closing, contextmanager
from datetime import timedelta
from urllib.parse import quote

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection, connections, models, transaction

from housing.freshness import checks, outbox
from housing.freshness.postgresql import triggers
from housing.freshness.tracking import MANY_ROWS, tables
from housing.models import Office, Property
from tests.fixtures.rows import a_property, execute, put, saved

pytestmark = pytest.mark.only("real")


def another_program(name="X"):
    """A connection of another program, in autocommit."""
    settings = connection.settings_dict
    address = {"host": settings["HOST"], "port": settings["PORT"], "user": settings["USER"], "password": settings["PASSWORD"]}
    return psycopg.connect(**address, dbname=settings["NAME"], application_name=name, autocommit=True)


@pytest.fixture
def outside(transactional_db):
    """The connection of another program."""
    with closing(another_program()) as program:
        yield program


@pytest.fixture
def left():
    """`left()`: the tags that are in the outbox now, one set for each row. The outbox is empty afterwards."""

    def left():
        rows = outbox.read(connection)
        outbox.delete(connection, rows)
        return [{tag for tag in tags.split("\n") if tag[0] != "|"} for _, tags in rows]

    return left


@contextmanager
def legacy(program, *statements):
    """Create the function `legacy`, its triggers and the table `legacy_rows`, and drop them afterwards."""
    for statement in statements:
        program.execute(statement)
    try:
        yield
    finally:
        program.execute("DROP TABLE IF EXISTS legacy_rows CASCADE")
        program.execute("DROP FUNCTION IF EXISTS legacy CASCADE")


# Every way to write

REPRICE = "UPDATE housing_property SET price = 1 WHERE id = %s"
COLUMNS = "title, property_type, status, price, location_id, agent_id, created_at, updated_at"
NEWER = "'New', property_type, status, price, location_id, agent_id, created_at + interval '1 second', updated_at FROM housing_property WHERE id = %s"
FUNCTION = "CREATE FUNCTION legacy() RETURNS {} LANGUAGE plpgsql AS $$ BEGIN UPDATE housing_property SET price = 1 WHERE id = {}; RETURN NULL; END $$"
ROWS = "CREATE TABLE legacy_rows (id bigint PRIMARY KEY)"


def copied(program, home):
    """COPY a property into the table."""
    with program.cursor() as cursor, cursor.copy(f"COPY housing_property ({COLUMNS}) FROM STDIN") as copy:
        copy.write_row(("Copied", "house", "sold", 1, home.location_id, home.agent_id, home.created_at + timedelta(seconds=1), home.created_at))


def by_a_function(program, home):
    """Call a function of the database through Django's cursor, in a SELECT."""
    with legacy(program, FUNCTION.format("int", home.pk)):
        execute("SELECT legacy()")


def by_a_trigger(program, home):
    """Save an office, while a trigger of the database makes each write of an office write a property."""
    trigger = "CREATE TRIGGER legacy AFTER UPDATE ON housing_office FOR EACH ROW EXECUTE FUNCTION legacy()"
    with legacy(program, FUNCTION.format("trigger", home.pk), trigger):
        Office.objects.create(name="Another").save()


def by_a_trigger_of_the_same_table(program, home, write=lambda: put(Property.objects.order_by("created_at")[0], title="Other")):
    """Update another property, while a trigger makes each write of a property write this one."""
    function = FUNCTION.replace("WHERE", "WHERE price <> 1 AND").format("trigger", home.pk)
    trigger = "CREATE TRIGGER legacy AFTER UPDATE ON housing_property FOR EACH ROW EXECUTE FUNCTION legacy()"
    with legacy(program, function, trigger):
        write()


def by_a_deferred_trigger(program, home):
    """The same at COMMIT."""
    trigger = "CREATE CONSTRAINT TRIGGER legacy AFTER INSERT ON housing_office INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION legacy()"
    with legacy(program, FUNCTION.format("trigger", home.pk), trigger), transaction.atomic():
        Office.objects.create(name="Another")


def by_a_cascade(program, home):
    """Delete a row of an untracked table to which a foreign key of properties refers."""
    reference = "ALTER TABLE housing_property ADD CONSTRAINT legacy FOREIGN KEY (id) REFERENCES legacy_rows ON DELETE CASCADE"
    with legacy(program, ROWS, "INSERT INTO legacy_rows SELECT id FROM housing_property", "DELETE FROM housing_propertyimage", reference):
        program.execute("DELETE FROM legacy_rows WHERE id = %s", [home.pk])


def by_another_project(program, home):
    """Write with the plain backend of Django."""
    connections.databases["plain"] = connection.settings_dict | {"ENGINE": "django.db.backends.postgresql"}
    try:
        Property.objects.using("plain").filter(pk=home.pk).update(price=1)
    finally:
        connections["plain"].close()
        del connections["plain"], connections.databases["plain"]


def deleted_and_inserted(program, home):
    """Delete the location and insert it with another city. Properties refer to it all the time."""
    with program.transaction():
        [row] = program.execute("DELETE FROM housing_location WHERE id = %s RETURNING id", [home.location_id])
        program.execute("INSERT INTO housing_location (id, city) VALUES (%s, 'Other')", row)
        program.execute("UPDATE housing_property SET city = 'Other' WHERE location_id = %s", row)  # the copy of the city, which no model has


OURS = "/* freshness  housing_property */ "
"""The beginning of an UPDATE of this application, as its log and `pg_stat_activity` show it. The specs have no application_name."""

WAYS = {
    "UPDATE": lambda x, home: x.execute(REPRICE, [home.pk]),
    "UPDATE of a location": lambda x, home: x.execute("UPDATE housing_location SET city = 'Other' WHERE id = %s", [home.location_id]),
    "UPDATE of an office": lambda x, home: x.execute("UPDATE housing_office SET name = 'Other' WHERE id = %s", [home.agent.office_id]),
    "UPDATE of a foreign key": lambda x, home: x.execute("UPDATE housing_property SET agent_id = agent_id + 1 WHERE id = %s", [home.pk]),
    "UPDATE of a primary key": lambda x, home: x.execute("UPDATE housing_property SET id = id + 1000 WHERE id = %s", [home.pk]),
    "UPDATE with a CTE": lambda x, home: x.execute(f"WITH x AS ({REPRICE} RETURNING id) SELECT id FROM x", [home.pk]),
    "INSERT": lambda x, home: x.execute(f"INSERT INTO housing_property ({COLUMNS}) SELECT {NEWER}", [home.pk]),
    "INSERT … ON CONFLICT": lambda x, home: x.execute(
        f"INSERT INTO housing_property (id, {COLUMNS}) SELECT id, {NEWER} ON CONFLICT (id) DO UPDATE SET price = 1", [home.pk]
    ),
    "MERGE": lambda x, home: x.execute(
        "MERGE INTO housing_property p USING (SELECT %s::bigint AS id) n ON p.id = n.id WHEN MATCHED THEN UPDATE SET price = 1", [home.pk]
    ),
    "MERGE that deletes": lambda x, home: x.execute(
        "MERGE INTO housing_property p USING (SELECT %s::bigint AS id) n ON p.id = n.id WHEN MATCHED THEN DELETE", [home.pk]
    ),
    "COPY": copied,
    "DELETE": lambda x, home: x.execute("DELETE FROM housing_property WHERE id = %s", [home.pk]),
    "DELETE and INSERT": deleted_and_inserted,
    "TRUNCATE": lambda x, home: x.execute("TRUNCATE housing_property, housing_propertyimage"),
    "DO": lambda x, home: x.execute(f"DO $$ BEGIN {REPRICE % home.pk}; END $$"),
    "a view": lambda x, home: x.execute("CREATE TEMP VIEW legacy AS SELECT * FROM housing_property") and x.execute("UPDATE legacy SET price = 1"),
    "session_replication_role": lambda x, home: x.execute("SET session_replication_role = replica") and x.execute(REPRICE, [home.pk]),
    "a function in a SELECT of this application": by_a_function,
    "a trigger that a save of this application fires": by_a_trigger,
    "a trigger that an update of the same table fires": by_a_trigger_of_the_same_table,
    "a trigger that a COMMIT of this application fires": by_a_deferred_trigger,
    "a cascade of the database": by_a_cascade,
    "another Django project": by_another_project,
    "a statement copied from this application's log": lambda x, home: x.execute(OURS + REPRICE, [home.pk]),
    "the driver's own connection": lambda x, home: connection.connection.execute(REPRICE, [home.pk]),
    "the driver's own cursor": lambda x, home: connection.cursor().cursor.execute(REPRICE, [home.pk]),
}
"""Name of a way to change what the first page shows → a function that does it, given the connection of another program and the newest property."""

OF_UNKNOWN_ROWS = {"UPDATE of a primary key", "TRUNCATE", "a view", "DELETE and INSERT"}
"""The ways that invalidate every page of their table."""


@pytest.mark.parametrize("way", WAYS)
def test_a_write_of_another_program_is_in_the_reads_after_the_next_verification(outside, twenty_properties, read, warm, verify, way):
    """T stores several pages · X COMMITs · V closes X's tags · every page that T reads is as in the database, and a page that shows no changed row is warm."""
    home, another = twenty_properties[0], twenty_properties[10]
    home.images.all()._raw_delete("default")
    pages = ["", "?ordering=price", "?max_price=300000", f"?agent={home.agent_id}", f"?agent={home.agent_id + 1}", f"?office={home.agent.office_id}"]
    pages += ["?city=Springfield", "?city=Other", "?search=home+0", f"/{twenty_properties[1].pk}"]
    before = {page: warm(f"cached{page}") for page in pages}
    untouched = warm("cached", agent=another.agent_id)

    WAYS[way](outside, home)
    verify()
    after = {page: read(f"cached{page}") for page in pages}
    assert {page for page in pages if after[page].status == 200 and after[page].body != read(f"optimized{page}").body} == set()
    assert after[""].came_from == "fwd=stale; stored"
    assert after[""].body != before[""]
    if way not in OF_UNKNOWN_ROWS:
        assert (read("cached", agent=another.agent_id).came_from, read("cached", agent=another.agent_id).body) == ("hit", untouched)


def test_a_write_of_another_program_that_is_rolled_back_leaves_no_row(outside, home, left):
    """The row is part of X's transaction."""
    with pytest.raises(ZeroDivisionError), outside.transaction():
        outside.execute(REPRICE, [home.pk])
        raise ZeroDivisionError  # rolls back
    assert left() == []


# The tags

SAME = {
    "an UPDATE": (lambda home, other: put(home, price=1, title="One"), "UPDATE housing_property SET price = 1, title = 'One' WHERE id = {home.pk}"),
    "an UPDATE of a key": (lambda home, other: put(home, agent=other.agent), "UPDATE housing_property SET agent_id = {other.agent_id} WHERE id = {home.pk}"),
    "an UPDATE of NULL": (lambda home, other: put(home, area=None), "UPDATE housing_property SET area = NULL WHERE id = {home.pk}"),
    "an INSERT": (
        lambda home, other: Property.objects.create(price=1, location=other.location, agent=home.agent),
        "INSERT INTO housing_property (title, property_type, status, price, location_id, agent_id, created_at, updated_at) "
        "VALUES ('', 'house', 'available', 1, {other.location_id}, {home.agent_id}, now(), now())",
    ),
    "a DELETE": (lambda home, other: Property.objects.filter(pk=home.pk)._raw_delete("default"), "DELETE FROM housing_property WHERE id = {home.pk}"),
    "a write to unknown rows": (lambda home, other: Property.objects.filter(pk=home.pk).update(id=10**6), "TRUNCATE housing_property, housing_propertyimage"),
}
"""A write of a model, and the same write in SQL."""


@pytest.mark.parametrize("write", SAME)
def test_a_trigger_finds_the_tags_that_the_model_finds(twenty_properties, outside, left, write):
    """The same pages become stale, and the same pages stay warm."""
    home, other, *_ = twenty_properties
    by_the_model, in_sql = SAME[write]
    put(home, area=1)
    home.images.all()._raw_delete("default")
    with transaction.atomic():
        by_the_model(home, other)
        expected = connection._collapsed()
        transaction.set_rollback(True)
    outside.execute(in_sql.format(home=home, other=other))

    through_joins = {tag for tag in expected if ">" in tag}  # a trigger reads no other table: all are tagged
    found = {tag for tags in left() for tag in tags if "image" not in tag}
    assert (found - {"housing_property:>"}, "housing_property:>" in found) == (expected - through_joins, bool(through_joins))


@pytest.mark.parametrize(("rows", "is_known"), [(MANY_ROWS, True), (MANY_ROWS + 1, False)])
def test_a_write_of_up_to_100_rows_has_the_tags_of_its_rows(outside, left, rows, is_known):
    """More tags would cost each verification more than the pages that they keep warm."""
    Office.objects.bulk_create([Office(name="One")] * rows)
    for table, sql in (
        ("housing_office", "UPDATE housing_office SET name = 'Other'"),
        ("housing_agent", "INSERT INTO housing_agent (name, office_id) SELECT name, id FROM housing_office"),
        ("housing_agent", "DELETE FROM housing_agent"),
    ):
        outside.execute(sql)
        [tags] = left()
        assert (f"{table}:*" in tags, len(tags) > rows) == (not is_known, is_known)


def test_an_update_that_changes_no_value_leaves_no_row(outside, home, left):
    """An import that runs each night writes the same values again. Columns that no model has are not compared either: a location's city is copied to them."""
    outside.execute("UPDATE housing_property SET price = price, title = title")
    outside.execute("UPDATE housing_property SET price = 1 WHERE id = 0")
    assert left() == []
    outside.execute("UPDATE housing_location SET city = 'Other'")
    assert [tags for tags in left() if "housing_property" in tags] == []


def test_a_value_that_is_equal_and_is_shown_differently_counts_as_changed(outside, transactional_db, left):
    """A number without a fixed scale can be 1.0 or 1.00, which are equal in SQL."""
    Office.objects.create(name="One")
    outside.execute("ALTER TABLE housing_office ALTER name TYPE numeric USING 1.0")
    try:
        outside.execute("UPDATE housing_office SET name = 1.00")
        assert len(left()) == 1
    finally:
        outside.execute("ALTER TABLE housing_office ALTER name TYPE varchar(200)")


def test_a_value_is_quoted_as_a_model_quotes_it(outside, transactional_db, left):
    """Otherwise the tags of a scope would not meet. A key that would have to be quoted has the tag of the table."""
    Office.objects.create(name="One")
    definition = ("id", '["name"]', '["id", "name"]')
    trigger = "CREATE TRIGGER legacy AFTER INSERT ON legacy_rows REFERENCING NEW TABLE AS freshness_new FOR EACH STATEMENT EXECUTE FUNCTION freshness_outbox"
    with legacy(outside, "CREATE TABLE legacy_rows (id varchar, name varchar)", f"{trigger}('t', '{definition[0]}', '{definition[1]}', '{definition[2]}')"):
        outside.execute("INSERT INTO legacy_rows VALUES ('a', 'plain-_.~1')")
        outside.execute("INSERT INTO legacy_rows VALUES ('a', %s)", [name := "São Paulo|\n=%"])
    assert left() == [{"t", "t:+", "t:>", "t.name=plain-_.~1+"}, {"t", "t:+", "t:>", f"t.name={quote(name, safe='')}+"}]


def test_a_column_that_a_migration_has_renamed_does_not_stop_other_programs(outside, home, left):
    """The triggers are installed when the migration ends. Until then they know the old name."""
    outside.execute("ALTER TABLE housing_property RENAME bedrooms TO rooms")
    try:
        outside.execute(REPRICE, [home.pk])
        assert left() == [{"housing_property", "housing_property:*"}]
    finally:
        outside.execute("ALTER TABLE housing_property RENAME rooms TO bedrooms")


# The mark


def test_the_mark_is_invisible_to_execute_wrappers_and_to_the_log_of_queries(home):
    """Instruments and the Debug Toolbar show the statement as Django made it."""
    seen = []

    def note(execute, sql, *rest):
        seen.append(sql)
        return execute(sql, *rest)

    connection.force_debug_cursor = True
    try:
        with connection.execute_wrapper(note):
            put(home, price=1)
            Office.objects.create(name="One")
    finally:
        connection.force_debug_cursor = False
    begins = {"INSERT", "UPDATE" if connection.pg_version >= 180000 else "WITH f"}  # an older server reads the old values in a CTE
    for texts in (seen, [query["sql"] for query in connection.queries]):
        assert {text[:6] for text in texts if "housing" in text} == begins
    connection.queries_log.clear()


def test_a_mark_counts_for_the_tables_that_it_names(outside, home, left):
    """A function in a statement of this application may write another table, whose tags the statement does not have."""
    with legacy(outside, FUNCTION.format("varchar", home.pk)):
        execute("UPDATE housing_office SET name = coalesce(legacy(), name)")
    assert [tags & tables().keys() for tags in left()] == [{"housing_property"}]


MARKS = {"X housing_property": True, "X housing_agent,housing_property": True, "Y housing_property": False, "Y housing_agent,housing_property": False}
MARKS |= dict.fromkeys(["X housing_propertyimage", "X housing_agent,housing_propertyimage", "X housing_property housing_agent"], False)
"""The text of a mark → whether a service with the name X has tagged the properties."""


@pytest.mark.parametrize("said", MARKS)
def test_a_mark_counts_for_the_application_and_the_tables_that_it_names(outside, home, left, said):
    """It counts only at the beginning, because any other text of a statement may contain one."""
    outside.execute(f"/* freshness {said} */ {REPRICE}", [home.pk])
    assert (left() == []) == MARKS[said]
    outside.execute(f"UPDATE housing_property SET title = '/* freshness {said} */ '")
    assert len(left()) == 1


@pytest.mark.parametrize("said", [said for said in MARKS if MARKS[said]])
def test_a_mark_does_not_count_for_the_triggers_that_the_statement_fires(outside, home, left, said):
    """Their tags are not among those of the statement."""
    by_a_trigger_of_the_same_table(outside, home, lambda: outside.execute(f"/* freshness {said} */ UPDATE housing_property SET title = 'Other'"))
    assert [f"housing_property:{home.pk}" in tags for tags in left()] == [True]


def test_a_statement_that_the_server_does_not_know_is_another_programs(outside):
    """Some background workers have no text of their statement."""
    condition = triggers.FOREIGN.replace("pg_catalog.current_query()", "NULL::text") % "' housing_property */'"
    assert outside.execute(f"SELECT {condition}").fetchone() == (True,)


def test_a_statement_of_one_table_calls_no_function(outside, home, left):
    """Almost every write of this application is one. A call would cost more than the condition of the trigger, which knows its mark."""
    outside.execute("CREATE OR REPLACE FUNCTION freshness_outbox() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$")
    try:
        put(home, price=1)
        home.images.create(position=9)
        home.images.all().delete()
    finally:
        triggers.install(connection)
    assert left() == []


@pytest.mark.parametrize("name", ["", "a name", "*/ DELETE", "100%", "x" * 100, "naïve", "a\\b'c"])
def test_a_statement_is_recognized_under_any_application_name(transactional_db, left, name):
    """The server shortens the name to 63 bytes and replaces what is not ASCII. The driver reports the result."""
    execute("SELECT set_config('application_name', %s, false)", name)
    Office.objects.create(name="One").save()
    execute("UPDATE housing_office SET name = %s WHERE id > 0 OR EXISTS (SELECT FROM housing_agent)", "Other")
    execute("SET application_name = ''")
    assert left() == []


# The database


def test_a_role_without_a_right_to_the_outbox_can_write(outside, home, left):
    """The function writes the row with the rights of its owner. It therefore uses no table or function of the role's own."""
    hijacked = "CREATE FUNCTION legacy_writer.jsonb_array_elements_text(jsonb) RETURNS SETOF text LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END'"
    outside.execute("CREATE ROLE legacy_writer")
    try:
        outside.execute("GRANT SELECT, UPDATE ON housing_property TO legacy_writer")
        outside.execute("CREATE SCHEMA AUTHORIZATION legacy_writer")
        outside.execute("SET ROLE legacy_writer")
        outside.execute("CREATE TEMP TABLE freshness_outbox (tags text)")
        outside.execute(hijacked)
        outside.execute("SET search_path = legacy_writer, pg_catalog, public")
        outside.execute(REPRICE, [home.pk])
        assert len(left()) == 1
    finally:
        outside.execute("RESET ROLE")
        outside.execute("DROP OWNED BY legacy_writer")
        outside.execute("DROP ROLE legacy_writer")


def reported():
    """The reports of `check --database default` about triggers."""
    return [(message.msg, message.hint) for message in checks.database_sees_other_programs(None, databases=["default"])]


BROKEN = {
    "missing": "DROP TRIGGER {trigger} ON housing_office",
    "disabled": "ALTER TABLE housing_office DISABLE TRIGGER {trigger}",
    "disabled with all others": "ALTER TABLE housing_office DISABLE TRIGGER USER",
    "not enabled for replication": "ALTER TABLE housing_office ENABLE TRIGGER {trigger}",
    "outdated": "ALTER TRIGGER {trigger} ON housing_office RENAME TO freshness_update_00000000",
}
"""Each way to break a trigger, with its statement."""


@pytest.mark.parametrize("broken", BROKEN)
def test_a_trigger_that_is_missing_disabled_or_outdated_is_reported_until_the_next_migrate(outside, transactional_db, left, broken):
    """It is a warning, because an error would stop `migrate`."""
    assert reported() == []
    outside.execute(BROKEN[broken].format(trigger=trigger_of("housing_office", "update")))

    [(message, hint)] = reported()
    assert message == "Writes by other programs are not seen in the database 'default': a trigger is missing, disabled or outdated on housing_office."
    assert hint == "Run `manage.py migrate` as the owner of these tables."

    call_command("migrate", verbosity=0)
    assert reported() == []
    Office.objects.create(name="One")
    outside.execute("UPDATE housing_office SET name = 'Other'")
    assert len(left()) == 1


def test_another_function_or_other_columns_are_another_form_of_tags(monkeypatch):
    """A version reads only the rows of triggers that write as its own do."""
    forms = triggers.forms()
    triggers.forms.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(triggers, "FUNCTION", "another")
        assert triggers.forms().isdisjoint(forms)
    triggers.forms.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(triggers, "_columns_of", lambda _: {"another"})
        assert triggers.forms().isdisjoint(forms)
    triggers.forms.cache_clear()
    assert triggers.forms() == forms


def test_an_outdated_function_is_reported_until_the_next_migrate(outside, transactional_db):
    """A release may change it, and the triggers then stay the same."""
    [(source,)] = outside.execute("SELECT pg_get_functiondef('freshness_outbox'::regproc)")
    outside.execute(source.replace("RETURN NULL", "RETURN OLD"))
    [(message, _)] = reported()
    assert "housing_agent, housing_location, housing_office, housing_property, housing_propertyimage" in message

    call_command("migrate", verbosity=0)
    assert reported() == []


def test_a_table_of_another_owner_is_left_alone_with_a_warning(outside, transactional_db, caplog):
    """`migrate` must not fail for it. The check reports it."""
    outside.execute(f"DROP TRIGGER {trigger_of('housing_office', 'update')} ON housing_office")
    outside.execute("CREATE ROLE legacy_writer")
    try:
        execute("SET ROLE legacy_writer")
        triggers.install(connection)
        assert caplog.messages == ["Writes by other programs to housing_office are not seen: permission denied for table housing_office"]
        assert len(reported()) == 1
    finally:
        execute("RESET ROLE")
        outside.execute("DROP ROLE legacy_writer")
        triggers.install(connection)
    assert reported() == []


def trigger_of(table, event):
    """The name of this trigger."""
    [(name,)] = connection.connection.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname LIKE %s", [table, f"freshness_{event}_%"])
    return name


def every_trigger():
    """(table, name, transaction that created it) of each trigger of the engine."""
    found = connection.connection.execute("SELECT tgrelid::regclass::text, tgname, xmin::text FROM pg_trigger WHERE tgname LIKE 'freshness%'")
    return set(found.fetchall())


def test_each_tracked_table_has_a_trigger_for_each_kind_of_statement(transactional_db):
    """Another `migrate` leaves them alone, because a trigger cannot be created while others write."""
    before = every_trigger()
    expected = {(table, kind) for table in tables() for kind in ("insert", "update", "delete", "truncate")}
    assert {(table, name.split("_")[1]) for table, name, _ in before} == expected
    call_command("migrate", verbosity=0)
    assert every_trigger() == before


def test_the_triggers_follow_the_tracked_models(transactional_db, settings, outside, left):
    """A model that is no longer tracked loses them."""
    settings.FRESHNESS_MODELS = ["housing.Office", "auth.User"]
    try:
        call_command("migrate", verbosity=0)
        assert {table for table, *_ in every_trigger()} == {"housing_office", "auth_user", "auth_user_groups", "auth_user_user_permissions"}
    finally:
        settings.FRESHNESS_MODELS = ["housing"]
        call_command("migrate", verbosity=0)
    assert {table for table, *_ in every_trigger()} == set(tables())


def unmanaged(name, table):
    """A new unmanaged model for this table."""
    meta = {"app_label": "housing", "db_table": table, "managed": False}
    return type(name, (models.Model,), {"__module__": "housing.models", "Meta": type("Meta", (), meta)})


def test_a_table_with_any_name_has_its_triggers_and_a_view_has_none(transactional_db, settings, outside, left):
    """Unmanaged models have tables of other programs, whose names may need quotes, and views."""
    odd, view = unmanaged("Odd", "Legacy */ rows"), unmanaged("View", "legacy_view")
    settings.FRESHNESS_MODELS = ["housing", "housing.Odd", "housing.View"]
    name = connection.ops.quote_name(odd._meta.db_table)
    try:
        outside.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY)")
        outside.execute(f"CREATE VIEW legacy_view AS SELECT * FROM {name}")
        call_command("migrate", verbosity=0)
        assert reported() == []
        odd.objects.create(pk=1)
        execute(f"UPDATE {name} SET id = 2 WHERE NOT EXISTS (SELECT FROM housing_office)")
        assert left() == []
        outside.execute("INSERT INTO legacy_view VALUES (3)")
        assert left() == [{odd._meta.db_table, f"{odd._meta.db_table}:+", f"{odd._meta.db_table}:>"}]
        assert not [table for table, *_ in every_trigger() if table == "legacy_view"]
    finally:
        outside.execute(f"DROP TABLE IF EXISTS {name} CASCADE")
        for model in (odd, view):
            del apps.all_models["housing"][model._meta.model_name]
        apps.clear_cache()
        settings.FRESHNESS_MODELS = ["housing"]


def test_without_an_outbox_there_are_no_triggers(transactional_db, outside):
    """`migrate freshness zero` drops the table, and other programs must still be able to write."""
    outside.execute("ALTER TABLE freshness_outbox RENAME TO elsewhere")
    try:
        triggers.install(connection)
        assert every_trigger() == set()
        assert reported() == []
    finally:
        outside.execute("ALTER TABLE elsewhere RENAME TO freshness_outbox")
        triggers.install(connection)
    assert len(every_trigger()) == 4 * len(tables())


# The cost


@pytest.mark.benchmark(group="write")
@pytest.mark.parametrize("rows", [1, 2_000])
def test_the_triggers_cost_a_write_of_this_application_less_than_three_percent(transactional_db, outside, benchmark, latency, monkeypatch, rows):
    """Triggers and mark are switched off and on in turn. For a statement with a mark, the condition of a trigger is false, and no function is called."""
    homes = saved(*map(a_property, range(rows)))
    trigger, mark = trigger_of("housing_property", "update"), triggers.mark

    def switch(state, mark):
        outside.execute(f"ALTER TABLE housing_property {state} TRIGGER {trigger}")
        monkeypatch.setattr(triggers, "mark", mark)
        outside.execute("VACUUM housing_property")  # otherwise each write would be slower than the one before
        write()  # reads the table's definition again

    def write():
        homes[0].save() if rows == 1 else Property.objects.filter(pk__lte=homes[-1].pk).update(price=1)

    def writes():
        for _ in range(20 if rows == 1 else 1):
            write()

    benchmark.name = f"{rows:,} rows written with triggers to without"
    timings = latency.interleaved(
        benchmark,
        writes,
        baseline=writes,
        before=lambda: switch("DISABLE", lambda *_: ""),
        prepare=lambda: switch("ENABLE ALWAYS", mark),
        rounds=100 if rows == 1 else 40,
    )
    timings.at_most(1.03, because="the condition compares one text once for each statement, and the changed rows are kept until it ends")


NOT_PROMISED = {
    "On SQLite, a write by another program, a trigger or the driver's own connection is in the reads after the next verification": (
        "SQLite has no trigger for a whole statement, and a trigger cannot know which program writes. An entry lives until the engine sees a write to the row, "
        "or until it expires."
    ),
    "A write while its trigger is disabled (`ALTER TABLE … DISABLE TRIGGER`, `pg_restore --disable-triggers`) is in the reads after the next verification": (
        "The owner of a table can always do this. `check --database default` finds it if it lasts. Flush Redis afterwards."
    ),
    "A write by logical replication is in the reads after the next verification": "It fires no trigger for a statement. Connect the service to the publisher.",
    "A write directly to a partition or an inheriting table is in the reads after the next verification": (
        "Only the triggers of the table that the statement names are fired."
    ),
    "A change of the schema by another program (`ALTER TABLE … TYPE … USING`, a table that is swapped) is in the reads after the next verification": (
        "It fires no trigger of a table. Flush Redis afterwards."
    ),
    "A value that a BEFORE trigger or a function changes in the table that a statement of this application writes is in the next read": (
        "The statement tags the rows and columns that it names itself. A write to another table is seen."
    ),
}
"""Writes that the triggers cannot see."""
