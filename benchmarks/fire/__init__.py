"""Peers under the suite's fire: other exactly-once loops play the copier of its checks."""
