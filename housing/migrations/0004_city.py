"""On PostgreSQL a property's row has the city of its location, too: an index cannot span two tables, and a page of a city is read along one.

PostgreSQL alone writes it, and no model has it, as none has an index. The foreign key has both columns: a location's new city reaches its properties as any
new key would, a writer who moves a property there meanwhile waits, and nobody can write another city, or none.
"""

from importlib import import_module

from django.db import migrations

on_postgresql = import_module("housing.migrations.0003_postgresql").on_postgresql

FORWARDS = (
    "ALTER TABLE housing_property ADD city varchar(100)",
    "UPDATE housing_property SET city = housing_location.city FROM housing_location WHERE housing_location.id = location_id",
    "SET CONSTRAINTS ALL IMMEDIATE",  # a table is not altered while one of its rows waits to be looked at
    "ALTER TABLE housing_location ADD CONSTRAINT location_city UNIQUE (id, city)",
    """
    ALTER TABLE housing_property ADD CONSTRAINT property_city FOREIGN KEY (location_id, city) REFERENCES housing_location (id, city)
    MATCH FULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED
    """,
    "CREATE INDEX property_city_newest ON housing_property (city, created_at, id)",
    "CREATE INDEX property_city_price ON housing_property (city, price, id)",
    "CREATE INDEX property_city_missing ON housing_property (location_id) WHERE city IS NULL",
    """
    CREATE FUNCTION housing_property_city() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        SELECT city INTO NEW.city FROM housing_location WHERE id = NEW.location_id FOR KEY SHARE;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER property_arrives BEFORE INSERT ON housing_property FOR EACH ROW EXECUTE FUNCTION housing_property_city()",
    """
    CREATE TRIGGER property_moves BEFORE UPDATE OF location_id ON housing_property FOR EACH ROW
    WHEN (NEW.location_id <> OLD.location_id) EXECUTE FUNCTION housing_property_city()
    """,
    """
    CREATE FUNCTION housing_location_city() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE housing_property SET city = NEW.city WHERE location_id = NEW.id AND city IS NULL;
        RETURN NULL;
    END $$
    """,
    # Within a transaction a property may come before its location, as it may in a file that `loaddata` reads.
    "CREATE TRIGGER location_arrives AFTER INSERT ON housing_location FOR EACH ROW EXECUTE FUNCTION housing_location_city()",
)
BACKWARDS = (
    "DROP TRIGGER location_arrives ON housing_location",
    "DROP TRIGGER property_moves ON housing_property",
    "DROP TRIGGER property_arrives ON housing_property",
    "DROP FUNCTION housing_location_city()",
    "DROP FUNCTION housing_property_city()",
    "ALTER TABLE housing_property DROP city",
    "ALTER TABLE housing_location DROP CONSTRAINT location_city",
)


class Migration(migrations.Migration):
    dependencies = [("housing", "0003_postgresql")]

    operations = [migrations.RunPython(on_postgresql(FORWARDS), on_postgresql(BACKWARDS))]
