"""The embedded broker: what is a program of its own elsewhere, here done to a file by the processes that use it.

To read in this order: schema.py (the tables, and what raw clients see), session.py (a connection and its
transactions), rows.py (messages as rows), storing.py, handing_out.py, settling.py, subscriptions.py. Functions that
take a connection run inside a transaction that their caller holds. Times are milliseconds of the wall clock, which
all processes of the machine share.
"""
