from django.conf import settings
from django.db import migrations, models

from brokerkit import once


class Migration(migrations.Migration):
    operations = [  # noqa: RUF012
        migrations.RunSQL(once.script(settings.DATABASE_URL)),
        migrations.CreateModel(
            "Account",
            [
                ("name", models.CharField(max_length=50, primary_key=True)),
                ("balance", models.IntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            "Charge",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("payment", models.CharField(max_length=200)),
                ("account", models.ForeignKey("ledger.Account", models.PROTECT)),
                ("dollars", models.IntegerField()),
            ],
        ),
    ]
