# Everything works on a fresh clone: the environment is made when it is first needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo check test test-slow test-app torture soak bench open-benchmark lock wheel sbom page navidrome-plugin figures docs screenshots notebooks clean

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## The whole story on the bundled clips, in minutes: runs/demo
	$(BIN)/patchifier demo --out runs/demo

check: $(READY)  ## Format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Child processes read what the first one compiled, also where a variable forbids to keep it.
test test-slow test-app: export PYTHONDONTWRITEBYTECODE =
test: $(READY)  ## Tests: offline, on a CPU, minutes
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: $(READY)  ## The longer tests
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m slow

test-app: $(READY)  ## Tests of the page in Debian's chromium, and of mpd: eight minutes
	$(BIN)/python -m pytest -q -m app

torture: $(READY)  ## Attack every guarantee of DESIGN.md: an hour on two cores; writes docs/guarantees.md
	$(BIN)/python -m tests.torture

soak: $(READY)  ## An hour of training and 20,000 embeddings: memory and open files stay flat
	$(BIN)/python benchmarks/soak.py

bench: $(READY)  ## Benchmarks: ratios of things timed in turn, ten minutes; writes the table of speeds in docs/performance.md
	$(BIN)/python benchmarks/log_mel.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/peers_training.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/embed.py --model patchifier-paper
	$(BIN)/python benchmarks/tables.py

ROOT ?= caches/open
open-benchmark: $(READY)  ## Build the open benchmark in ROOT: downloads 3 GB, renders the rest
	$(BIN)/python benchmarks/open/build.py $(ROOT)

lock: $(READY)  ## Write requirements.lock: the versions of constraints.txt with hashes; needs a registry
	$(BIN)/uv pip compile pyproject.toml --extra all --constraint constraints.txt \
	    --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command "make lock" --no-emit-index-url --quiet --output-file requirements.lock

# The time that hatchling takes if there is none.
wheel: export SOURCE_DATE_EPOCH = 1580601600
wheel: $(READY)  ## Build the wheel, the same bytes each time: dist
	$(BIN)/python -m hatchling build --target wheel --directory dist

sbom: $(READY)  ## List what requirements.lock installs, in CycloneDX's form: dist/patchifier.cdx.json
	$(BIN)/python tools/sbom.py dist/patchifier.cdx.json

page: $(READY)  ## Copy the page's libraries from npm in exact versions: src/patchifier/app/page/vendor
	$(BIN)/python tools/page.py

figures: $(READY)  ## Make the figures and sounds of the site again: docs/made
	$(BIN)/python -m tools.figures

docs: $(READY)  ## Build the site, which needs no network to read: dist/docs
	$(BIN)/python -m tools.figures --missing
	$(BIN)/python -m sphinx -E -W --keep-going -q -d dist/doctrees docs dist/docs

navidrome-plugin: $(READY)  ## Compile the plugin of Navidrome: src/patchifier/integrations/navidrome/plugin.wasm
	$(BIN)/python tools/navidrome_plugin.py

screenshots: $(READY)  ## Draw the page's views with the bundled clips: docs/figures/app; needs chromium
	$(BIN)/python -m tools.screenshots

notebooks: $(READY)  ## Execute docs/notebooks/*.py into .ipynb files beside them: minutes
	$(BIN)/python -m tools.notebooks

clean:  ## Remove the environment and everything made here
	rm -rf $(VENV) runs caches dist docs/made .pytest_cache .mypy_cache .ruff_cache .hypothesis
