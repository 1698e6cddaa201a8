"""The worker: it may be killed at any line, and each payment is charged once."""

import json

from django.core.management.base import BaseCommand
from django.db import connection, transaction
from django.db.models import F

import brokerkit
from brokerkit.once import Inbox
from ledger.models import Account, Charge

INBOX = Inbox("payments--ledger")


class Command(BaseCommand):
    help = "Charges payments until none has come for a while; fails when one cannot be charged, which then comes again."

    def add_arguments(self, parser):
        parser.add_argument("broker")
        parser.add_argument("--patience", type=float, default=3.0, help="seconds without a payment before it ends")

    def handle(self, *, broker, patience, **_):
        with brokerkit.connect(broker) as connected:
            connected.declare("payments", subscriptions=["ledger"])
            with connected.consumer("payments", subscription="ledger") as consumer:
                while deliveries := consumer.receive(max_messages=100, timeout=patience):
                    with transaction.atomic():
                        for delivery in INBOX.fresh(connection, deliveries):
                            charge(delivery)
                    for delivery in deliveries:  # what was left out, too: it is in the ledger
                        delivery.ack()


def charge(delivery):
    account = Account.objects.select_for_update().get(name=delivery.key)
    dollars = json.loads(delivery.body)["charge"]
    Account.objects.filter(name=account.name).update(balance=F("balance") - dollars)
    Charge.objects.create(payment=delivery.id, account=account, dollars=dollars)
