.PHONY: install test demo prove lint types clean

PYTHON ?= python3
DISTRIBUTIONS = . plugins/memory plugins/sqlite plugins/rabbitmq plugins/kafka conformance
EDITABLE = $(foreach path,$(DISTRIBUTIONS),--editable ./$(path))

install: .venv/installed

# The stamp depends on everything that decides what gets installed.
.venv/installed: requirements.txt pyproject.toml conformance/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@sh tools/make-venv $(PYTHON)
	.venv/bin/pip install --quiet --require-hashes --requirement requirements.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation $(EDITABLE)
	@touch $@
