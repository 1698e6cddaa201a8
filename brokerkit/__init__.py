"""One producer/consumer interface for message brokers, with guarantees that are measured.

with brokerkit.connect("sqlite:///queue.db") as broker:
    broker.declare("payments", subscriptions=["ledger"])
    with broker.producer("payments") as producer:
        producer.send(b'{"charge": 50}', id="evt-1").result(timeout=5)
    with broker.consumer("payments", subscription="ledger") as consumer:
        for delivery in consumer.receive(timeout=5):
            delivery.ack()
"""

from brokerkit.broker import Broker, connect
from brokerkit.consumer import CloseReport, Consumer, Delivery, Lease
from brokerkit.driver import Cause, Position
from brokerkit.errors import (
    AccessRefused,
    AlreadySettled,
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    Forked,
    GuaranteeNotOffered,
    IdempotencyKeyError,
    KeyInUse,
    KeyLost,
    KeyReused,
    LeaseLost,
    NoFinalAnswer,
    NotFound,
    NotSupported,
    PositionLost,
    ProducerFull,
    SendError,
    SendRefused,
    SendUnknown,
    SettleError,
    WebhookRefused,
    WindowPassed,
)
from brokerkit.events import Event, EventKind
from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties
from brokerkit.message import Message, new_id
from brokerkit.producer import Producer, Receipt
from brokerkit.transacting import Retry
from brokerkit.transactions import Transaction, Transactions

__version__ = "0.1.0"

__all__ = [
    "AccessRefused",
    "AlreadySettled",
    "Broker",
    "BrokerkitError",
    "Cause",
    "Claim",
    "Claims",
    "CloseReport",
    "Closed",
    "ConfigurationError",
    "ConnectionLost",
    "Consumer",
    "Delivery",
    "Event",
    "EventKind",
    "FailurePoint",
    "Forked",
    "Guarantee",
    "GuaranteeNotOffered",
    "IdempotencyKeyError",
    "KeyInUse",
    "KeyLost",
    "KeyReused",
    "Lease",
    "LeaseLost",
    "Likelihood",
    "Message",
    "NoFinalAnswer",
    "NotFound",
    "NotSupported",
    "Position",
    "PositionLost",
    "Producer",
    "ProducerFull",
    "Properties",
    "Receipt",
    "Retry",
    "SendError",
    "SendRefused",
    "SendUnknown",
    "SettleError",
    "Transaction",
    "Transactions",
    "WebhookRefused",
    "WindowPassed",
    "connect",
    "new_id",
]
