"""What Amazon documents of standard queues and no emulator shows, put in between by the suite's fault proxy."""

ENDPOINT = "the endpoint"
"""Whose fault it is, for the record: neither a producer's nor a consumer's."""
