PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LITELLM := .venv/litellm
LLAMACPP := .venv/llamacpp
TORCHVISION := .venv/torchvision

.PHONY: serve test check litellm llamacpp names seeing clean help

## serve: set up what is missing, fetch the embedded engine's weights, and run the proxy on 127.0.0.1:8080 (RINGFENCE_PORT: on another port)
serve: $(READY)
	$(BIN)/ringfence engine pull
	$(BIN)/ringfence serve

## test: set up what is missing and run every test
test: $(READY)
	$(BIN)/ringfence engine pull
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

## check: formatting, lint, types, layers, tests
check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

## litellm: LiteLLM's proxy in an environment of its own (750 MB); without it the tests that start it are skipped
litellm: $(LITELLM)/.ready

## llamacpp: llama.cpp's server in an environment of its own, built here in minutes; without it its tests are skipped
llamacpp: $(LLAMACPP)/.ready

## names: spaCy, for checks of kind entities (190 MB); without it their tests are skipped
names: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[names]'

## seeing: the tests of guards that see images, with what Llama 4's processor needs (8 MB) in a folder of its own
seeing: $(READY) $(TORCHVISION)/.ready
	RINGFENCE_NEEDED=torchvision PYTHONPATH=$(TORCHVISION):tests $(BIN)/python -m pytest -p transforms_only tests/test_guards_images.py

## clean: forget the virtual environment and every cache beside it
clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build

## help: what can be made
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST))

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test,plots,dev]'
	touch $(READY)

$(LITELLM)/.ready: tests/litellm.txt
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/litellm.txt
	touch $(LITELLM)/.ready

# Apart from our own packages: as PyPI has it, it is built for PyTorch with CUDA, and breaks what imports it elsewhere.
$(TORCHVISION)/.ready: tests/torchvision.txt | $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TORCHVISION) --requirement tests/torchvision.txt
	touch $(TORCHVISION)/.ready

# Not for this very processor: with AMX, llama.cpp 0.3.36 crashes at the first token.
$(LLAMACPP)/.ready: tests/llamacpp.txt
	$(PYTHON) -m venv $(LLAMACPP)
	CMAKE_ARGS=-DGGML_NATIVE=OFF $(LLAMACPP)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/llamacpp.txt
	touch $(LLAMACPP)/.ready
