from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('housing', '0004_city_and_office'),
    ]

    operations = [
        migrations.AddField(
            model_name='property',
            name='source_id',
            field=models.CharField(editable=False, help_text='The id in the imported file, by which a changed row updates the property.', max_length=200, null=True, unique=True),
        ),
    ]
