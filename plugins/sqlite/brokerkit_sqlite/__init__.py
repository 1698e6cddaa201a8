"""brokerkit plugin: embedded broker in one SQLite file."""
