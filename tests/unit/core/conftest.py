"""A broker over the driver that a module's own fixture `driver` makes."""

import pytest

from brokerkit.broker import Broker


@pytest.fixture
def events():
    return []


@pytest.fixture
def broker(driver, events):
    with Broker(driver, "scripted", events.append) as broker:
        yield broker
        broker.close(0.1)  # what a test leaves in flight never ends
