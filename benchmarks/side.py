"""One measurement in a process of its own: `python -m benchmarks.side MODULE FUNCTION JSON`.

Prints a JSON object: the rate (or whatever the function returns) and the process's peak memory.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys


def main(module: str, function: str, arguments: str) -> None:
    given = json.loads(arguments)
    value = getattr(importlib.import_module(f"benchmarks.{module}"), function)(*given["args"], **given["kwargs"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"value": value, "peak_memory": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
