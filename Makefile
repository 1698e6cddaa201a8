.PHONY: install test demo prove lint types clean

PYTHON ?= python3
DISTRIBUTIONS = . plugins/memory plugins/sqlite plugins/rabbitmq plugins/kafka plugins/sqs plugins/pubsub conformance
EDITABLE = $(foreach path,$(DISTRIBUTIONS),--editable ./$(path))

install: .venv/installed

# The stamp depends on everything that decides what gets installed.
.venv/installed: requirements.txt pyproject.toml conformance/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@sh tools/make-venv $(PYTHON)
	.venv/bin/pip install --quiet --require-hashes --requirement requirements.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation $(EDITABLE)
	@touch $@

# The main job on the embedded defaults: no root, no Docker, under two minutes.
demo: install
	.venv/bin/brokerkit demo

# Everything once, at its smallest honest size, real brokers included.
test: install
	.venv/bin/pytest -m "not prove" -n 2 --dist loadfile $(ARGS)

# Repeats, soaks and large counts.
prove: install
	.venv/bin/pytest -m prove $(ARGS)

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: install
	.venv/bin/mypy

clean:
	rm -rf .venv out
