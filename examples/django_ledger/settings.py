"""As few settings as there can be: one application, and the database that DATABASE_URL names."""

import os

from psycopg.conninfo import conninfo_to_dict

DATABASE_URL = os.environ["DATABASE_URL"]
"""Also what brokerkit's tables are made for."""


def _database(url: str) -> dict[str, object]:
    if url.startswith("sqlite:///"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.removeprefix("sqlite:///")}
    found = conninfo_to_dict(url)
    own = {name.upper(): found.pop(name, "") for name in ("user", "password", "host", "port")}
    return {"ENGINE": "django.db.backends.postgresql", "NAME": found.pop("dbname"), "OPTIONS": found, **own}


INSTALLED_APPS = ["ledger"]
DATABASES = {"default": _database(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
