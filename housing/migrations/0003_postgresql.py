"""Only on PostgreSQL: a trigram index for `search`, on the upper-case texts that Django compares, and finer statistics of prices.

With the default statistics, the planner would mistake ten rows of a high price for thousands, and scan the whole list.
"""

from django.contrib.postgres.operations import TrigramExtension
from django.core.management.base import CommandError
from django.db import DatabaseError, migrations

FORWARDS = (
    "CREATE INDEX property_search ON housing_property USING gin (upper(title) gin_trgm_ops, upper(description) gin_trgm_ops)",
    "ALTER TABLE housing_property ALTER price SET STATISTICS 1000",
)
BACKWARDS = ("ALTER TABLE housing_property ALTER price SET STATISTICS -1", "DROP INDEX property_search")


class Trigrams(TrigramExtension):
    """Django's operation with one clear error."""

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        """Create the extension. Raises CommandError if that is not possible."""
        try:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        except DatabaseError as error:
            raise CommandError(
                f"`search` needs PostgreSQL's extension pg_trgm, which could not be created ({' '.join(str(error).split())}). It is in PostgreSQL's contrib "
                "package. As the database's owner or a superuser, run CREATE EXTENSION pg_trgm in this database, then migrate again."
            ) from error

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        """Keep the extension, because others may use it."""


def on_postgresql(statements):
    """Return a function that executes the statements on PostgreSQL only."""

    def run(apps, schema_editor):
        for statement in statements if schema_editor.connection.vendor == "postgresql" else ():
            schema_editor.execute(statement)

    return run


class Migration(migrations.Migration):
    dependencies = [("housing", "0002_indexes")]

    operations = [Trigrams(), migrations.RunPython(on_postgresql(FORWARDS), on_postgresql(BACKWARDS))]
