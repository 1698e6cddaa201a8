"""brokerkit plugin: Kafka."""
