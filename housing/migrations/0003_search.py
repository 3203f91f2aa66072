"""An index for `search`, on PostgreSQL: trigrams of the title and the description, in capitals, as Django compares them."""

from django.contrib.postgres.operations import TrigramExtension
from django.core.management.base import CommandError
from django.db import DatabaseError, migrations

INDEX = "CREATE INDEX property_search ON housing_property USING gin (upper(title) gin_trgm_ops, upper(description) gin_trgm_ops)"


class Trigrams(TrigramExtension):
    """As Django's, with one clear error."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        """Raises CommandError where the extension is not there and cannot be made."""
        try:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        except DatabaseError as error:
            raise CommandError(
                f"`search` needs PostgreSQL's extension pg_trgm, which could not be made ({' '.join(str(error).split())}). It is in PostgreSQL's contrib "
                "package. As the database's owner or a superuser, run CREATE EXTENSION pg_trgm in this database, then migrate again."
            ) from error

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        """The extension stays: somebody else may use it by now."""


def add(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(INDEX)


def remove(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP INDEX property_search")


class Migration(migrations.Migration):
    dependencies = [("housing", "0002_indexes")]

    operations = [Trigrams(), migrations.RunPython(add, remove, elidable=False)]
