"""What only PostgreSQL has: an index for `search`, of trigrams in capitals, as Django compares; and how closely the planner looks at prices.

Of a hundred sorts of price, the dearest is ten thousand of a million: the planner would take ten for thousands, and walk the whole list for them.
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


def on_postgresql(statements):
    """What a migration runs there, and nowhere else."""

    def run(apps, schema_editor):
        for statement in statements if schema_editor.connection.vendor == "postgresql" else ():
            schema_editor.execute(statement)

    return run


class Migration(migrations.Migration):
    dependencies = [("housing", "0002_indexes")]

    operations = [Trigrams(), migrations.RunPython(on_postgresql(FORWARDS), on_postgresql(BACKWARDS))]
