"""Reading SQL. The text of a statement shows which tables it writes, and anything that the text leaves open counts as a write."""

import types

import pytest
from django.apps import apps
from django.db import NotSupportedError, connection, models, transaction

from housing.freshness import statements, tracking
from housing.freshness.statements import written_tables
from tests.fixtures.rows import execute

# Which tables a statement writes

NOTHING, EVERYTHING = set(), {"housing_agent", "housing_location", "housing_office", "housing_property", "housing_propertyimage"}
STATEMENTS = {
    # harmless
    "": NOTHING,
    "-- nothing": NOTHING,
    "SELECT * FROM housing_property": NOTHING,
    "select 1": NOTHING,
    "SELECT 1;": NOTHING,
    "SELECT 1; SELECT 2": NOTHING,
    "SELECT 'a; DELETE FROM housing_agent'": NOTHING,
    "SELECT 'put into a box'": NOTHING,
    'SELECT "into" FROM elsewhere': NOTHING,
    "SELECT id FROM housing_agent FOR UPDATE": NOTHING,
    "(SELECT 1) UNION (SELECT 2)": NOTHING,
    "VALUES (1)": NOTHING,
    "TABLE housing_agent": NOTHING,
    "WITH x AS (SELECT id FROM housing_agent) SELECT * FROM x": NOTHING,
    "VACUUM": NOTHING,
    "VACUUM INTO 'housing_agent.backup'": NOTHING,
    "SAVEPOINT mine": NOTHING,
    "ROLLBACK TO mine": NOTHING,
    "ROLLBACK WORK TO SAVEPOINT mine": NOTHING,
    "DECLARE mine CURSOR FOR SELECT * FROM housing_agent": NOTHING,
    "FETCH ALL FROM mine": NOTHING,
    "MOVE mine": NOTHING,
    "PREPARE mine AS UPDATE housing_agent SET name = 'x'": NOTHING,
    "PRAGMA user_version = 7": NOTHING,
    "SET search_path TO housing_agent": NOTHING,
    "DISCARD ALL": NOTHING,
    "CREATE DATABASE housing_agent": NOTHING,
    "DROP DATABASE elsewhere": NOTHING,
    "CREATE UNIQUE INDEX CONCURRENTLY mine ON housing_property (area)": NOTHING,
    "COPY housing_agent TO STDOUT": NOTHING,
    "COPY housing_agent (id, name) TO STDOUT WITH (FORMAT csv)": NOTHING,
    "COPY (SELECT * FROM housing_agent) TO STDOUT": NOTHING,
    # EXPLAIN
    "EXPLAIN UPDATE housing_agent SET name = 'x'": NOTHING,
    "EXPLAIN QUERY PLAN UPDATE housing_agent SET name = 'x'": NOTHING,
    "EXPLAIN (ANALYZE false) UPDATE housing_agent SET name = 'x'": NOTHING,
    "EXPLAIN (VERBOSE) UPDATE housing_agent SET name = 'analyze'": NOTHING,
    "EXPLAIN ANALYZE SELECT * FROM housing_agent": NOTHING,
    "EXPLAIN\n(VERBOSE,\nANALYZE) UPDATE housing_agent SET name = 'x'": {"housing_agent"},
    "explain analyze update HOUSING_AGENT set name = 'x'": {"housing_agent"},
    "EXPLAIN ANALYSE VERBOSE UPDATE housing_agent SET name = 'x'": {"housing_agent"},
    "EXPLAIN /* x */ (/* y */ ANALYZE) UPDATE housing_agent SET name = 'x'": {"housing_agent"},
    "EXPLAIN (ANALYZE false, ANALYZE) UPDATE housing_agent SET name = 'x'": {"housing_agent"},
    "EXPLAIN ANALYZE UPDATE legacy_view SET price = 1 WHERE id IN (SELECT id FROM housing_agent)": EVERYTHING,
    "EXPLAIN ANALYZE EXECUTE mine('housing_agent')": EVERYTHING,
    "EXPLAIN /* \\ */ (ANALYZE) UPDATE django_session SET session_data = ''": EVERYTHING,
    # writes to the table that they target
    "UPDATE housing_propertyimage SET caption = 'x'": {"housing_propertyimage"},
    "UPDATE housing_office SET name = 'a;b'": {"housing_office"},
    "UPDATE OR IGNORE housing_office SET name = 'x'": {"housing_office"},
    "UPDATE /* nightly; */ housing_office SET name = 'x'": {"housing_office"},
    "UPDATE housing_office SET city = a.name FROM housing_agent a": {"housing_office", "housing_agent"},
    'REPLACE INTO "housing_office" VALUES (1)': {"housing_office"},
    "MERGE INTO housing_office USING housing_agent a ON true WHEN MATCHED THEN DELETE": {"housing_office", "housing_agent"},
    "TRUNCATE housing_propertyimage": {"housing_propertyimage"},
    'TRUNCATE TABLE "housing_propertyimage", "django_session" RESTART IDENTITY;': {"housing_propertyimage"},
    "COPY housing_office (name, city) FROM STDIN": {"housing_office"},
    "INSERT INTO django_session VALUES (1)": NOTHING,
    'INSERT OR REPLACE INTO "django_session" VALUES (1)': NOTHING,
    "UPDATE ONLY django_session SET session_data = ''": NOTHING,
    "DELETE FROM auth_user_groups": NOTHING,
    "DELETE FROM django_migrations": NOTHING,
    "TRUNCATE django_session": NOTHING,
    "COPY django_session FROM STDIN": NOTHING,
    # writes to a target that has no model
    "UPDATE legacy_view SET price = 1": EVERYTHING,
    "UPDATE legacy_view SET price = 1 WHERE id IN (SELECT property_id FROM housing_propertyimage)": EVERYTHING,
    "UPDATE django_session.legacy_view SET price = 1": EVERYTHING,
    "UPDATE django_session . legacy_view SET price = 1": EVERYTHING,
    "UPDATE django_session . [legacy view] SET price = 1": EVERYTHING,
    "UPDATE [housing_agent] SET name = 'x'": EVERYTHING,
    "UPDATE main.housing_agent SET name = 'x'": EVERYTHING,
    "UPDATE \"HOUSING_AGENT\" SET name = 'x'": EVERYTHING,
    "MERGE INTO legacy_view USING housing_agent a ON true WHEN MATCHED THEN DELETE": EVERYTHING,
    "COPY legacy_view FROM 'housing_agent.csv'": EVERYTHING,
    "TRUNCATE legacy_table, housing_agent": EVERYTHING,
    # statements that may write more tables than their text shows
    "TRUNCATE housing_office CASCADE": EVERYTHING,
    "TRUNCATE django_session CASCADE": EVERYTHING,
    "CALL nightly()": EVERYTHING,
    "CALL nightly('housing_agent')": EVERYTHING,
    "EXECUTE mine('housing_agent')": EVERYTHING,
    "DO $$ BEGIN UPDATE housing_agent SET name = 'x'; PERFORM f(); END $$": EVERYTHING,
    "WITH x AS (SELECT id FROM housing_propertyimage) UPDATE legacy_view SET price = 1": EVERYTHING,
    "WITH x AS (DELETE FROM legacy_view RETURNING id) SELECT * FROM x, housing_agent": EVERYTHING,
    "INSERT INTO django_session WITH x AS (DELETE FROM legacy_view RETURNING id) SELECT * FROM x": EVERYTHING,
    "INSERT INTO housing_office WITH x AS (DELETE FROM legacy_view RETURNING id) SELECT * FROM x": EVERYTHING,
    "COPY (DELETE FROM legacy_view RETURNING 'housing_agent') TO STDOUT": EVERYTHING,
    "COPY housing_agent TO PROGRAM 'nightly'": EVERYTHING,
    "ATTACH 'housing_agent.db' AS elsewhere": EVERYTHING,
    "REFRESH MATERIALIZED VIEW legacy_view": EVERYTHING,
    "IMPORT FOREIGN SCHEMA housing_agent FROM SERVER elsewhere INTO public": EVERYTHING,
    "a word that no server has": EVERYTHING,
    # several statements in one text
    "SELECT 1; UPDATE housing_agent SET name = 'x'": EVERYTHING,
    "SELECT 1; CALL nightly('housing_agent')": EVERYTHING,
    "DELETE FROM django_session; CALL nightly()": EVERYTHING,
    "SELECT 1; /* ; */ CALL nightly('housing_agent')": EVERYTHING,
    # texts that the two servers read differently
    "/* /* */ DELETE FROM housing_agent; -- */ */ SELECT 1": EVERYTHING,
    "-- x\rDELETE FROM housing_agent\nSELECT 1": EVERYTHING,
    "SELECT E'\\'', E'; SELECT '; DELETE FROM legacy_view; --'": EVERYTHING,
    "SELECT [it's]; DELETE FROM legacy_view; --'": EVERYTHING,
    # the schema
    "CREATE VIEW mine AS SELECT 1": NOTHING,
    "CREATE TABLE mine (office_id integer REFERENCES elsewhere (id) ON DELETE CASCADE)": NOTHING,
    "CREATE TABLE mine AS SELECT * FROM housing_agent": {"housing_agent"},
    "SELECT * INTO mine FROM elsewhere": NOTHING,
    "SELECT * INTO housing_agent FROM elsewhere": {"housing_agent"},
    "CREATE RULE mine AS ON UPDATE TO housing_agent DO ALSO NOTHING": {"housing_agent"},
    "ALTER TABLE housing_agent ADD COLUMN age integer": {"housing_agent"},
    "ALTER TABLE mine RENAME TO housing_agent": {"housing_agent"},
    "DROP TABLE housing_agent": {"housing_agent"},
    "DROP TABLE mine": NOTHING,
    "DROP TABLE mine CASCADE": EVERYTHING,
    "DROP VIEW mine; CALL nightly()": EVERYTHING,
    "DROP SCHEMA public": EVERYTHING,
    "DROP OWNED BY somebody": EVERYTHING,
    "ALTER SCHEMA public RENAME TO housing_agent": EVERYTHING,
    "ALTER TYPE status RENAME VALUE 'sold' TO 'gone'": EVERYTHING,
}


@pytest.mark.parametrize(("text", "written"), STATEMENTS.items(), ids=STATEMENTS)
def test_a_statement_is_a_write_unless_its_text_says_otherwise(text, written):
    """Only a plain statement on the table of a model is judged by its target. Several statements in one text are judged together."""
    assert written_tables(text) == written


POSTGRESQL = """ABORT ALTER ANALYZE BEGIN CALL CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE DELETE DISCARD DO DROP END EXECUTE
EXPLAIN FETCH GRANT IMPORT INSERT LISTEN LOAD LOCK MERGE MOVE NOTIFY PREPARE REASSIGN REFRESH REINDEX RELEASE RESET REVOKE ROLLBACK SAVEPOINT SECURITY SELECT
SET SHOW START TABLE TRUNCATE UNLISTEN UPDATE VACUUM VALUES WITH"""
SQLITE = """ALTER ANALYZE ATTACH BEGIN COMMIT CREATE DELETE DETACH DROP END EXPLAIN INSERT PRAGMA REINDEX RELEASE REPLACE ROLLBACK SAVEPOINT SELECT UPDATE
VACUUM VALUES WITH"""
"""The words that begin a statement: "SQL Commands" of PostgreSQL 18, and "SQL As Understood By SQLite" 3.50."""

WRITE_NO_ROW = {
    "reads": "EXPLAIN SELECT SHOW TABLE VALUES WITH",
    "begins or ends a transaction": "ABORT BEGIN COMMIT END RELEASE ROLLBACK SAVEPOINT START",
    "is about the session": "DEALLOCATE DISCARD LISTEN NOTIFY PRAGMA RESET SET UNLISTEN",
    "names a statement that does not run yet, and EXECUTE counts as a write": "PREPARE",
    "is about a cursor, which reads only": "CLOSE DECLARE FETCH MOVE",
    "changes how rows are stored, and none of them": "ANALYZE CHECKPOINT LOCK REINDEX VACUUM",
}
"""Why a statement that begins with one of these words writes no row, unless it goes on in a way that STATEMENTS has."""


def test_every_other_statement_in_the_grammars_of_both_databases_is_a_write():
    """So is one that a later version adds. A word that is missing here would be a hole in the promise that raw SQL is seen."""
    harmless = set(" ".join(WRITE_NO_ROW.values()).split())
    words = {*POSTGRESQL.split(), *SQLITE.split(), "LATER"}

    assert {word for word in words if not written_tables(f"{word} housing_agent")} == harmless <= words
    assert {word for word in words if not written_tables(f"{word.lower()} housing_agent")} == harmless


WRITING = {
    "INSERT": "INSERT INTO legacy_view DEFAULT VALUES RETURNING id",
    "UPDATE": "UPDATE legacy_view SET name = 'x' RETURNING id",
    "DELETE": "DELETE FROM legacy_view RETURNING id",
    "MERGE": "MERGE INTO legacy_view USING x ON true WHEN MATCHED THEN DELETE RETURNING id",
}
AROUND = (
    "SELECT * FROM x",
    "VALUES (1)",
    "TABLE x",
    "INSERT INTO django_session SELECT * FROM x",
    "UPDATE django_session SET expire_date = now() FROM x",
    "DELETE FROM django_session USING x",
    "MERGE INTO django_session USING x ON true WHEN MATCHED THEN DELETE",
)
PLACES = (
    *("{}", "({})", "SELECT 1; {}", "EXPLAIN ANALYZE {}", "EXPLAIN (ANALYZE, VERBOSE) {}"),
    *("COPY ({}) TO STDOUT", "CREATE TABLE mine AS {}", "INSERT INTO mine {}", "INSERT INTO django_session {}"),
)


@pytest.mark.parametrize("verb", WRITING)
def test_a_write_in_a_with_clause_is_seen_wherever_the_clause_stands(verb):
    """PostgreSQL executes it whatever the statement around it does, and inside EXPLAIN ANALYZE and COPY, too. A view may write any table."""
    names = ("x AS", "y AS (SELECT 1), x (id) AS")
    texts = [place.format(f"WITH {name} ({WRITING[verb]}) {around}") for place in PLACES for around in AROUND for name in names]

    assert [text for text in texts if written_tables(text) != EVERYTHING] == []
    assert len(texts) == 126


@pytest.fixture
def odd_tables():
    """Tables whose names need quotes: with a capital letter, with a schema, and with both."""

    class Capital(models.Model):
        class Meta:
            app_label = "housing"
            db_table = "Capital"

    class Qualified(models.Model):
        class Meta:
            app_label = "housing"
            db_table = '"elsewhere"."qualified"'

    class Both(models.Model):
        class Meta:
            app_label = "housing"
            db_table = '"Elsewhere"."Both ""ways"""'

    yield
    for model in (Capital, Qualified, Both):
        del apps.all_models["housing"][model._meta.model_name]
    apps.clear_cache()
    tracking.forget()


@pytest.mark.parametrize(
    ("text", "written"),
    {
        'UPDATE "Capital" SET id = 1': {"Capital"},
        'ALTER TABLE "Capital" RENAME TO mine': {"Capital"},
        "UPDATE Capital SET id = 1": None,  # PostgreSQL folds it to: capital
        'UPDATE "elsewhere"."qualified" SET id = 1': {'"elsewhere"."qualified"'},
        "DELETE FROM elsewhere.QUALIFIED": {'"elsewhere"."qualified"'},
        'DELETE FROM "elsewhere" . qualified WHERE id = 1': {'"elsewhere"."qualified"'},
        "UPDATE qualified SET id = 1": None,  # in an unknown schema
        "UPDATE public.qualified SET id = 1": None,
        "UPDATE elsewhere.qualified.more SET id = 1": None,
        "ALTER TABLE qualified ADD COLUMN age integer": {'"elsewhere"."qualified"'},
        'INSERT INTO "Elsewhere"."Both ""ways""" VALUES (1)': {'"Elsewhere"."Both ""ways"""'},
        'UPDATE django_session SET session_data = (SELECT id FROM "Capital")': {"Capital"},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_name_is_read_as_the_server_reads_it(odd_tables, text, written):
    """An unquoted name is in lower case, and a schema is part of the name. A name in any other form may be that of a view."""
    assert written_tables(text) == (set(tracking.tables()) if written is None else written)


@pytest.mark.parametrize(
    ("tracked", "text", "written"),
    [
        ("housing", "DELETE FROM housing_agent", {"housing_agent", "housing_property", "housing_propertyimage"}),
        ("housing", "UPDATE housing_property SET id = 1", {"housing_property", "housing_propertyimage"}),
        ("housing", "REPLACE INTO housing_property VALUES (1)", {"housing_property", "housing_propertyimage"}),
        ("housing", "INSERT OR REPLACE INTO housing_property VALUES (1)", {"housing_property", "housing_propertyimage"}),
        ("housing", "TRUNCATE housing_property", {"housing_property", "housing_propertyimage"}),
        ("housing", "INSERT INTO housing_agent VALUES (1)", {"housing_agent"}),
        ("housing", "COPY housing_agent FROM STDIN", {"housing_agent"}),
        ("housing.PropertyImage", "DELETE FROM housing_agent", {"housing_propertyimage"}),
        ("housing.PropertyImage", "INSERT INTO housing_agent VALUES (1)", NOTHING),
    ],
)
def test_a_deletion_invalidates_the_tables_that_the_database_cascades_to(monkeypatch, settings, tracked, text, written):
    """The table itself may be untracked. (Such foreign keys come with Django 6.1. Until then, ordinary ones stand in for them here.)"""
    monkeypatch.setattr(tracking, "WRITTEN_BY_THE_DATABASE", (types.FunctionType,))
    settings.FRESHNESS_MODELS = [tracked]
    tracking.forget()
    try:
        assert written_tables(text) == written
    finally:
        monkeypatch.undo()
        tracking.forget()


def test_a_statement_is_judged_once_unless_it_is_long():
    """A long statement usually lists many values and is not sent again. Keeping a thousand of them would be a leak."""
    short = f"UPDATE housing_office SET name = '{'x' * (statements.LONG - 42)}'"
    long = f"UPDATE housing_office SET name = '{'x' * (statements.LONG - 35)}'"
    assert (len(short), len(long)) == (statements.LONG - 7, statements.LONG)
    before = statements._remembered.cache_info()

    assert [written_tables(text) for text in (short, short, long, long)] == [{"housing_office"}] * 4

    after = statements._remembered.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)


def test_a_statement_is_judged_again_when_other_models_are_tracked(settings):
    """A verdict from before the change would miss the new tables."""
    assert written_tables("UPDATE auth_user SET email = 'x'") == NOTHING

    settings.FRESHNESS_MODELS = ["auth.User"]

    assert written_tables("UPDATE auth_user SET email = 'x'") == {"auth_user"}
    assert written_tables("UPDATE housing_office SET name = 'x'") == NOTHING


NOT_PROMISED = {
    "A write to a table through a name that hides it (a temporary view, another `search_path`, an attached database) is in the next read": (
        "A name is judged as the models define it. Its meaning on this connection is not in the text."
    ),
}


# Ending a transaction


@pytest.mark.parametrize(
    "text",
    [
        *("COMMIT", "end", "ROLLBACK", "abort", "PREPARE TRANSACTION 'x'", "/* done */ COMMIT", "-- done\nCOMMIT", ";COMMIT", "COMMIT AND CHAIN"),
        *("SELECT 1; COMMIT", "SELECT 1; /* done */ COMMIT", "SELECT 1; END", "SELECT 1; ABORT", "COMMIT PREPARED 'x'"),
    ],
)
def test_ending_a_transaction_with_sql_is_refused(twenty_properties, text):
    """Its COMMIT would bypass the lease, so readers would never learn of the write."""
    with pytest.raises(NotSupportedError, match=r"Use transaction.atomic\(\)"), transaction.atomic():
        twenty_properties[0].save()
        execute(text)


def test_ending_a_transaction_with_sql_is_refused_under_a_savepoint_too(twenty_properties):
    """COMMIT ends the whole transaction, whatever savepoints are open."""
    with pytest.raises(NotSupportedError, match=r"Use transaction.atomic\(\)"), transaction.atomic():
        twenty_properties[0].save()
        with transaction.atomic():
            execute("COMMIT")


def test_commit_as_sql_is_refused_even_before_a_write(transactional_db):
    """Django would believe that its transaction and its locks still exist, while each following statement commits on its own."""
    with transaction.atomic(), pytest.raises(NotSupportedError, match="Running COMMIT as raw SQL would bypass the cache"):
        execute("COMMIT")


@pytest.mark.parametrize("text", ["COMMIT; CALL nightly()", "COMMIT; DELETE FROM housing_property", "SELECT 1; COMMIT", "COMMIT PREPARED 'x'"])
def test_a_commit_among_other_statements_is_refused_even_outside_a_transaction(transactional_db, text):
    """The text would commit before the engine can take a lease. COMMIT PREPARED cannot run inside a transaction, so it cannot wait for a lease."""
    with pytest.raises(NotSupportedError, match="Running COMMIT as raw SQL would bypass the cache"):
        execute(text)


def test_ending_a_transaction_that_wrote_no_tracked_table_is_allowed(transactional_db):
    """Such a COMMIT invalidates nothing, so it needs no lease."""
    execute("BEGIN")
    execute("COMMIT")


@pytest.mark.parametrize(
    "text", ["CREATE TRIGGER mine BEGIN DELETE FROM elsewhere; END", "DO $$ BEGIN PERFORM 1; END $$", "SELECT '; COMMIT'", "ROLLBACK TO mine"]
)
def test_a_keyword_inside_a_body_or_a_literal_ends_no_transaction(text):
    """The END of a trigger and a COMMIT in quotes are not statements."""
    assert not statements.ends_transaction(text)


@pytest.mark.only("embedded")
@pytest.mark.parametrize("autocommit", [True, False])
def test_releasing_a_savepoint_that_holds_a_write_is_refused_outside_of_atomic(transactional_db, autocommit):
    """If SQLite began the transaction with the savepoint, RELEASE is a COMMIT. (PostgreSQL has no savepoints outside a transaction.)"""
    transaction.set_autocommit(autocommit)
    try:
        execute("SAVEPOINT mine")
        execute("UPDATE housing_office SET name = 'Renamed'")
        with pytest.raises(NotSupportedError, match=r"^Running RELEASE as raw SQL may commit and bypass the cache"):
            execute("RELEASE mine")
        connection.rollback()
    finally:
        transaction.set_autocommit(True)


def test_a_savepoint_made_with_sql_is_allowed(twenty_properties, warm, read):
    """A rollback to it keeps the tags of its writes. That over-invalidates, but nothing is stale."""
    warm()

    with transaction.atomic():
        execute("SAVEPOINT mine")
        twenty_properties[0].save()
        execute("ROLLBACK TO mine")

    assert read("cached").came_from == "fwd=stale; stored"
