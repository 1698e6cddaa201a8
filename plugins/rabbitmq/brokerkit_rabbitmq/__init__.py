"""brokerkit plugin: RabbitMQ with manual acks."""
