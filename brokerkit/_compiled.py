"""Whether what each message passes is compiled in this installation (hatch_build.py)."""

from brokerkit import sending

COMPILED = not sending.__file__.endswith(".py")
