"""Payments are charged to accounts once each, in a transaction of Django's.

export DATABASE_URL=postgresql://app@localhost/books    # or sqlite:///books.db
python examples/django_ledger/manage.py migrate
python examples/django_ledger/manage.py charge BROKER [--patience SECONDS]
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    execute_from_command_line(sys.argv)
