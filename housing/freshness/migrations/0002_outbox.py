"""The outbox: the tags of writes that are missing in the journal."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("freshness", "0001_database")]

    # Without a model, as `freshness_database`: a copy of its rows in another database would invalidate entries there.
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.CreateModel(
                    name="Outbox", fields=[("id", models.BigAutoField(primary_key=True, serialize=False)), ("tags", models.TextField())]
                )
            ]
        )
    ]
