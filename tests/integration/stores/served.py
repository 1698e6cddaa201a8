"""A service that charges, behind the ASGI middleware: `uvicorn served:app`, with STORE, LEDGER and CARE.

CARE is `transaction` (the charge and the answer in one transaction of the store), `forward` (the ledger is another
service that knows the key) or `none` (the ledger is another service that does not).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from contextlib import closing
from typing import Any

import psycopg

from brokerkit.once import Held, Keys
from brokerkit.once.asgi import IdempotencyKeyMiddleware
from brokerkit.once.http import HELD, Answer

STORE, LEDGER, CARE = (os.environ[name] for name in ("STORE", "LEDGER", "CARE"))
CHARGE = "insert into charges (key, token) values ({0}, {0})"


def ledger() -> Any:
    if LEDGER.startswith("sqlite"):
        return sqlite3.connect(LEDGER.removeprefix("sqlite:///"), timeout=30)
    return psycopg.connect(LEDGER)


def charge(held: Held) -> Answer:
    """Charges, and answers with the charge's number, which nobody can guess."""
    mark = "?" if LEDGER.startswith("sqlite") else "%s"
    token = secrets.token_hex(8)
    time.sleep(0.1)
    with closing(ledger()) as db:
        if CARE == "forward":
            again = CHARGE.format(mark) + " on conflict (key) do nothing"
            db.execute(again, (held.key, token))
            [token] = db.execute(f"select token from charges where key = {mark}", (held.key,)).fetchone()
        else:
            db.execute(CHARGE.format(mark), (held.key, token))
        answer = Answer(201, [("location", f"/charges/{token}")], token.encode())
        if CARE == "transaction":
            held.finish(answer.dump(), connection=db)
        db.commit()
    time.sleep(0.1)
    return answer


async def service(scope: Any, receive: Any, send: Any) -> None:
    answer = await asyncio.to_thread(charge, scope[HELD])
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


app = IdempotencyKeyMiddleware(service, Keys(STORE, "charges", lease=1.0), required=True)
