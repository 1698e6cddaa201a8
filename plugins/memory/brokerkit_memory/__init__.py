"""brokerkit plugin: in-process broker for unit tests."""
