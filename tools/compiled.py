"""Says so when brokerkit is interpreted here, and what would compile it."""

from brokerkit import sending

if sending.__file__.endswith(".py"):
    print(
        "brokerkit's hot path is interpreted here. To compile it: apt-get install gcc python3-dev, then make -B install"
    )
