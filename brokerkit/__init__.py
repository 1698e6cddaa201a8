"""One producer/consumer interface for message brokers, with guarantees that are measured."""
