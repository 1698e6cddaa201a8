"""Says so when brokerkit is interpreted here, and what would compile it."""

from brokerkit._compiled import COMPILED

if not COMPILED:
    print(
        "brokerkit's hot path is interpreted here. To compile it: apt-get install gcc python3-dev, then make -B install"
    )
