"""brokerkit beside raw clients and peers, on the same real brokers, in the same run: `python -m benchmarks`."""
