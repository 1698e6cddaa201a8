.PHONY: install peers test demo prove lint types clean

PYTHON ?= python3
DISTRIBUTIONS = . plugins/memory plugins/sqlite plugins/rabbitmq plugins/kafka plugins/sqs plugins/pubsub plugins/postgresql plugins/valkey conformance
EDITABLE = $(foreach path,$(DISTRIBUTIONS),--editable ./$(path))

# What each message passes is compiled where there is a C compiler, and interpreted elsewhere.
COMPILING = $(patsubst %/hatch_build.py,./%,./hatch_build.py $(wildcard plugins/*/hatch_build.py))
compiled = $(addprefix $(1)/,$(shell sed -n 's/^modules = \[\(.*\)\]$$/\1/p' $(1)/pyproject.toml | tr -d '",'))
COMPILED = $(foreach path,$(COMPILING),$(call compiled,$(path)))

install: .venv/installed .venv/compiled

# The stamp depends on everything that decides what gets installed.
.venv/installed: requirements.txt pyproject.toml conformance/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@sh tools/make-venv $(PYTHON) .venv
	.venv/bin/pip install --quiet --require-hashes --requirement requirements.txt
	BROKERKIT_PURE=1 .venv/bin/pip install --quiet --no-deps --no-build-isolation $(EDITABLE)
	@touch $@

.venv/compiled: .venv/installed hatch_build.py $(COMPILED)
	.venv/bin/pip install --quiet --no-deps --no-build-isolation $(foreach path,$(COMPILING),--editable $(path))
	@.venv/bin/python tools/compiled.py
	@touch $@

# Libraries that we are compared with and that cannot live beside our own dependencies.
peers: .venv-peers/installed

.venv-peers/installed: requirements-peers.txt
	@sh tools/make-venv $(PYTHON) .venv-peers
	.venv-peers/bin/pip install --quiet --require-hashes --requirement requirements-peers.txt
	@touch $@

# The main job on the embedded defaults: no root, no Docker, under two minutes.
demo: install
	.venv/bin/brokerkit demo

# Everything once, at its smallest honest size, real brokers included.
# A worker that crashes is not restarted: with loadfile, pytest-xdist then waits forever for the rest.
# What brokers need is fetched first: no test's time is for that.
test: install peers
	.venv/bin/brokerkit fetch
	$(if $(ARGS),,.venv/bin/python tools/interpreted.py -q tests/unit/core tests/unit/kafka)
	.venv/bin/pytest -m "not prove" -n 2 --dist loadfile --max-worker-restart 0 $(ARGS)

# Repeats, soaks and large counts.
prove: install peers
	.venv/bin/pytest -m prove $(ARGS)

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: install
	.venv/bin/mypy

clean:
	rm -rf .venv .venv-peers out
	find brokerkit plugins -name '*.so' -delete
