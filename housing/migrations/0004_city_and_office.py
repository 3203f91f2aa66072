"""Only on PostgreSQL: copies of the location's city and the agent's office in the property's row, because an index cannot span two tables.

PostgreSQL writes the copies, and no model has them. A foreign key on both columns keeps them equal: a location's new city cascades to its properties, a
concurrent writer that moves a property there waits, and no other city can be written. An agent's office works in the same way.
"""

from importlib import import_module

from django.db import migrations

on_postgresql = import_module("housing.migrations.0003_postgresql").on_postgresql

COPIES = (
    {"of": "location", "column": "city", "type": "varchar(100)"},
    {"of": "agent", "column": "office_id", "type": "bigint"},
)
FORWARDS = (
    "ALTER TABLE housing_property ADD {column} {type}",
    "UPDATE housing_property SET {column} = housing_{of}.{column} FROM housing_{of} WHERE housing_{of}.id = {of}_id",
    "SET CONSTRAINTS ALL IMMEDIATE",  # a table with pending constraint checks cannot be altered
    "ALTER TABLE housing_{of} ADD CONSTRAINT {of}_{column} UNIQUE (id, {column})",
    """
    ALTER TABLE housing_property ADD CONSTRAINT property_{column} FOREIGN KEY ({of}_id, {column}) REFERENCES housing_{of} (id, {column})
    MATCH FULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED
    """,
    "CREATE INDEX property_{column}_newest ON housing_property ({column}, created_at, id)",
    "CREATE INDEX property_{column}_price ON housing_property ({column}, price, id)",
    "CREATE INDEX property_{column}_missing ON housing_property ({of}_id) WHERE {column} IS NULL",
    """
    CREATE FUNCTION housing_property_{column}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        SELECT {column} INTO NEW.{column} FROM housing_{of} WHERE id = NEW.{of}_id FOR KEY SHARE;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER property_arrives_{column} BEFORE INSERT ON housing_property FOR EACH ROW EXECUTE FUNCTION housing_property_{column}()",
    """
    CREATE TRIGGER property_moves_{column} BEFORE UPDATE OF {of}_id ON housing_property FOR EACH ROW
    WHEN (NEW.{of}_id <> OLD.{of}_id) EXECUTE FUNCTION housing_property_{column}()
    """,
    """
    CREATE FUNCTION housing_{of}_{column}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE housing_property SET {column} = NEW.{column} WHERE {of}_id = NEW.id AND {column} IS NULL;
        RETURN NULL;
    END $$
    """,
    # In a transaction, a property may be inserted before its location, for example by `loaddata`.
    "CREATE TRIGGER {of}_arrives AFTER INSERT ON housing_{of} FOR EACH ROW EXECUTE FUNCTION housing_{of}_{column}()",
)
BACKWARDS = (
    "DROP TRIGGER {of}_arrives ON housing_{of}",
    "DROP TRIGGER property_moves_{column} ON housing_property",
    "DROP TRIGGER property_arrives_{column} ON housing_property",
    "DROP FUNCTION housing_{of}_{column}()",
    "DROP FUNCTION housing_property_{column}()",
    "ALTER TABLE housing_property DROP {column}",
    "ALTER TABLE housing_{of} DROP CONSTRAINT {of}_{column}",
)


def of_each_copy(statements):
    """Return the statements for both copies."""
    return tuple(statement.format(**copy) for copy in COPIES for statement in statements)


class Migration(migrations.Migration):
    dependencies = [("housing", "0003_postgresql")]

    operations = [migrations.RunPython(on_postgresql(of_each_copy(FORWARDS)), on_postgresql(of_each_copy(BACKWARDS)))]
