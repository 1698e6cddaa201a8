"""Payments are charged to accounts once each, in a transaction of SQLAlchemy's.

    python examples/sqlalchemy_ledger.py BROKER DATABASE [--patience SECONDS]

BROKER is any of brokerkit's URLs, DATABASE one of SQLAlchemy's for PostgreSQL (`postgresql+psycopg://…`) or SQLite. The
mark that a payment was seen is in the same transaction as its charge: a worker may be killed at any line, and the
payment is charged once. It ends when nothing has come for a while, and fails when a payment cannot be charged, which
then comes again.
"""

from __future__ import annotations

import argparse
import json

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import brokerkit
from brokerkit import once

INBOX = once.Inbox("payments--ledger")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


class Charge(Base):
    __tablename__ = "charges"
    id: Mapped[int] = mapped_column(primary_key=True)
    payment: Mapped[str]
    account: Mapped[str]
    dollars: Mapped[int]


def charge(session: Session, delivery: brokerkit.Delivery) -> None:
    dollars = json.loads(delivery.body or b"")["charge"]
    account = session.get_one(Account, delivery.key, with_for_update=True)
    account.balance -= dollars
    session.add(Charge(payment=delivery.id, account=account.name, dollars=dollars))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("broker")
    arguments.add_argument("database")
    arguments.add_argument("--patience", type=float, default=3.0, help="seconds without a payment before it ends")
    asked = arguments.parse_args()
    once.init(asked.database.replace("postgresql+psycopg:", "postgresql:"))
    engine = create_engine(asked.database)
    Base.metadata.create_all(engine)
    with brokerkit.connect(asked.broker) as broker:
        broker.declare("payments", subscriptions=["ledger"])
        with broker.consumer("payments", subscription="ledger") as consumer:
            while deliveries := consumer.receive(max_messages=100, timeout=asked.patience):
                with Session(engine) as session, session.begin():
                    for delivery in INBOX.fresh(session, deliveries):
                        charge(session, delivery)
                for delivery in deliveries:  # what was left out, too: it is in the ledger
                    delivery.ack()


if __name__ == "__main__":
    main()
