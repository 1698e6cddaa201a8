"""DBOS's queue, with one workflow of one transaction step a message. Run by the Python of `make peers`."""

from __future__ import annotations

import os
import time
from typing import Any

PATIENCE = 120.0
CONNECTIONS = 15
"""Of its pool to the database by default: more workflows at a time than these wait for one until they fail."""
_QUEUE = "payments"


def charge(store: str, topic: str, count: int) -> float:
    """Charges a second, from the first one to the last, with what is to be done already in its queue. Its settings are
    kept, but that it looks for work twenty times a second, runs as many workflows at a time as it has connections, and
    that steps run READ COMMITTED as everybody's here."""
    import psycopg
    from dbos import DBOS, DBOSClient, SQLAlchemyDatasource, run_dbos_database_migrations
    from sqlalchemy import text

    table = f"dbos_{topic.replace('-', '_')}"
    version, application = os.urandom(4).hex(), f"bench-{os.urandom(4).hex()}"
    with psycopg.connect(store, autocommit=True) as db:
        db.execute("drop schema if exists dbos cascade")
        db.execute(f"create table {table} (id text not null, dollars integer not null)")
        run_dbos_database_migrations(store)
        DBOS(
            config={
                "name": application,
                "system_database_url": store,
                "application_version": version,
                "console_log_level": "ERROR",
                "log_level": "ERROR",
            }
        )
        books = SQLAlchemyDatasource.create(store)

        @books.transaction(isolation_level="READ COMMITTED")  # type: ignore[untyped-decorator]
        def step(id: str) -> None:
            books.sql_session().execute(text(f"insert into {table} values (:id, 50)"), {"id": id})

        @DBOS.workflow(name="payment")  # type: ignore[untyped-decorator]
        def payment(id: str) -> None:
            step(id)

        client = DBOSClient(system_database_url=store, application_name=application)
        for number in range(count):
            options: Any = {"queue_name": _QUEUE, "workflow_name": "payment", "app_version": version}
            client.enqueue(options, f"evt-{number}")
        DBOS.launch()
        try:
            DBOS.register_queue(_QUEUE, polling_interval_sec=0.05, worker_concurrency=CONNECTIONS)
            began = _until(db, table, 1)
            return (count - 1) / (_until(db, table, count) - began)
        finally:
            DBOS.destroy()
            client.destroy()


def _until(db: Any, table: str, count: int) -> float:
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        if db.execute(f"select count(*) from {table}").fetchone()[0] >= count:
            return time.perf_counter()
        time.sleep(0.02)
    raise RuntimeError(f"{count} charges did not come in {PATIENCE:g} s")
