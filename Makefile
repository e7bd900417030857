# Two commands do everything on a fresh machine: `make demo` and `make test`. Neither needs root.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A plain `torch` resolves to a CUDA build of several GB: the version is named, and installed first.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=

.PHONY: demo test check bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo                      the whole system on a simulated site; prints the dashboard address'
	@echo 'make demo SOURCE=rtsp://...    the same on your own camera (or a video file)'
	@echo 'make demo UNTIL=first-alert    ends by itself at the first alert'
	@echo 'make test                      every test that this machine allows'
	@echo 'make check                     ruff, mypy --strict, import-linter'
	@echo 'make bench                     the benchmarks; results in benchmarks/results/'

demo: $(VENV)/.demo-installed
	@$(BIN)/python -m deploy.demo $(if $(SOURCE),--source '$(SOURCE)') $(if $(UNTIL),--until '$(UNTIL)') $(if $(SEED),--seed '$(SEED)')

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.dev-installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

bench: $(VENV)/.dev-installed
	$(BIN)/python -m benchmarks

$(BIN)/python:
	@echo '[1/3] making a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	@echo '[2/3] installing Tectum and what it needs (a few minutes, once; about 800 MB on disk)'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --progress-bar on --quiet --editable '.[demo]'
	@echo '[3/3] starting'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml | $(BIN)/python
	@echo '[2/3] installing $(TORCH)'
	@$(BIN)/python -m pip install --quiet $(TORCH)
	@echo '[3/3] installing Tectum, its training and test tools'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@if [ -f /usr/include/portaudio.h ]; then $(BIN)/python -m pip install --quiet PyAudio; fi
	@touch $@

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
