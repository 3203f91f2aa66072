"""The random id that tells this database from every other."""

from uuid import uuid4

from django.db import migrations, models


def choose_id(apps, schema_editor):
    apps.get_model("freshness", "Database").objects.using(schema_editor.connection.alias).create(id=uuid4())


class Migration(migrations.Migration):
    dependencies = []

    # The table has no model: `dumpdata` would copy the id into another database, and `flush` would remove it.
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.CreateModel(name="Database", fields=[("id", models.UUIDField(primary_key=True, serialize=False))]),
                migrations.RunPython(choose_id, migrations.RunPython.noop),
            ]
        )
    ]
