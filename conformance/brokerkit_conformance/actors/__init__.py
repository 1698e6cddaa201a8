"""Producers and consumers as processes of their own, which can really be killed, stopped and thawed."""
