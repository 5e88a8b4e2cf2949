# Two commands for a fresh machine: `make demo` and `make test`. The rest: `make help`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# By uv where it can be had, else by pip: a third of the time.
INSTALL := $(BIN)/python .ci/install.py

# Images whose statistics the encoder ships with.
TRAIN ?= tiny-imagenet/train

# The demo's own images, or with IMAGES=~/Pictures those of a folder (an index of its own, nothing is copied).
IMAGES ?=
OWN := $(patsubst ~/%,$(HOME)/%,$(IMAGES))
OUT := $(if $(OWN),demo-out/own,demo-out)
FOLDER := '$(subst ','\'',$(if $(OWN),$(OWN),$(OUT)/images))'

# With this set, every `mgm` that a test starts would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo own-queries encoder quick test test-lowest runtimes lint types unit suite coverage audit constraints peers bench reference docs screenshots format clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

# Stop early with the remedy instead of late with a traceback.
$(VENV)/.made:
	@$(PYTHON) -c '' 2>/dev/null || \
	  { echo "$(PYTHON) cannot be run here; install Python 3.11 or newer, or say make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), expected 3.11 or newer; say make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "making the environment in $(VENV)"
	@$(PYTHON) -m venv --clear '$(VENV)'
	@touch $@

# Stamps: what is there is installed into again only when pyproject.toml changed.
$(VENV)/.demo: pyproject.toml | $(VENV)/.made
	@echo "installing mg-milvus and what it needs (torch is large: a minute or more) ..."
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	@echo "installing mg-milvus and what its tests need (torch is large: a minute or more) ..."
	@$(INSTALL) -e '.[dev,demo,docs]'
	@touch $@ $(VENV)/.demo

demo-out/.images: benchmarks/demo_images.py | $(VENV)/.demo
	@$(BIN)/python benchmarks/demo_images.py demo-out
	@touch $@

own-queries: | $(VENV)/.demo
	@$(BIN)/python benchmarks/demo_images.py $(OUT) --own $(FOLDER)

demo: $(VENV)/.demo $(if $(OWN),own-queries,demo-out/.images) ## ingest images, run three queries; IMAGES=~/Pictures: with your own
	$(BIN)/mgm ingest $(FOLDER) --uri $(OUT)/demo.db
	$(BIN)/mgm query $(OUT)/queries/category.jpg --uri $(OUT)/demo.db --profile category -k 5
	$(BIN)/mgm query $(OUT)/queries/object.jpg --uri $(OUT)/demo.db --profile object -k 5
	$(BIN)/mgm query $(OUT)/queries/instance.jpg --uri $(OUT)/demo.db --profile instance -k 10 --html $(OUT)/result.html
	@echo
	@echo "The last result as a page: file://$(CURDIR)/$(OUT)/result.html"
	@echo "Continue with: $(BIN)/mgm query IMAGE --uri $(OUT)/demo.db"

quick: lint types unit ## rules, types and unit tests, while you work

test: lint types suite ## everything that CI checks

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

unit: $(VENV)/.dev ## pytest: the unit tests
	$(BIN)/python -m pytest tests/unit -n auto

# A file's tests stay together, for they share what is costly to make; the slow files go first (tests/conftest.py).
suite: $(VENV)/.dev ## pytest: all tests, one more at once than there are cores
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=10

# What depends on the encoder's numbers, computed in the ways that `make suite` did not use: 8 bits are the default of a
# CPU with VNNI, and cannot be had on another.
RUNTIME_TESTS := $(addprefix tests/integration/test_,encoder.py encoder_onnx.py explanation.py search_regions.py \
  index_lists.py recall.py)

OTHER_RUNTIMES = from mg_milvus.encoder.onnx_runtime import has_fast_int8; print("onnx torch" if has_fast_int8() else "torch")

runtimes: $(VENV)/.dev ## pytest: the tests of encoder and search in the runtimes that are not this machine's default
	@for runtime in $$($(BIN)/python -c '$(OTHER_RUNTIMES)'); do \
	  echo "MGM_RUNTIME=$$runtime"; \
	  MGM_RUNTIME=$$runtime $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(RUNTIME_TESTS) || exit; \
	done

test-lowest: build/lowest/.made ## pytest: unit and integration tests with the lowest versions that pyproject.toml allows
	build/lowest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/unit tests/integration

build/lowest/.made: pyproject.toml .ci/constraints.py | $(VENV)/.dev
	@$(PYTHON) -m venv --clear build/lowest
	@$(BIN)/python .ci/constraints.py --lowest > build/lowest/constraints.txt
	@build/lowest/bin/python -m pip --disable-pip-version-check install --quiet --quiet -c build/lowest/constraints.txt \
	  -e '.[large,parquet,ray,remote,report,tensorboard,terminal,web]' efficientnet-lite-pytorch httpx hypothesis packaging pytest pytest-xdist scikit-learn
	@touch $@

coverage: $(VENV)/.dev ## pytest with coverage (a third slower)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term

audit: $(VENV)/.dev ## known vulnerabilities of what is installed, where their data can be had
	@$(BIN)/python .ci/audit.py '$(VENV)'

constraints: $(VENV)/.dev ## note the installed versions as the newest that are tested
	@$(BIN)/python .ci/constraints.py

peers: build/peers/.made ## an environment for benchmarks/peers.py, with the tools it compares with (hnswlib needs a C++ compiler)

build/peers/.made: pyproject.toml benchmarks/peers.txt
	@$(PYTHON) -m venv --clear build/peers
	@build/peers/bin/python .ci/install.py -e '.[parquet]' -r benchmarks/peers.txt
	@touch $@

bench: $(VENV)/.dev ## ratios of speed and bytes beside the committed ones; IMAGES=folder: your own, KEEP=1: commit these
	$(BIN)/python benchmarks/bench.py $(if $(OWN),--images $(FOLDER),$(if $(KEEP),--runs 3 --json benchmarks/results/bench.json))

encoder: $(VENV)/.dev ## make the heads, statistics and ranges that ship again, from images in TRAIN=folder
	$(BIN)/python benchmarks/make_encoder.py '$(TRAIN)'

reference: $(VENV)/.dev ## write docs/cli.md again, from the help of the commands
	$(BIN)/python docs/cli.py

docs: $(VENV)/.dev ## build the pages of docs/ into build/docs; they open without a server
	$(BIN)/python -m zensical build --strict
	@echo "file://$(CURDIR)/build/docs/index.html"

screenshots: $(VENV)/.dev ## make the images of docs/ again, from the running program (needs Chromium)
	$(BIN)/python docs/screenshots.py

format: $(VENV)/.dev ## apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, the demo and all caches
	rm -rf '$(VENV)' demo-out build dist .pytest_cache .mypy_cache .ruff_cache .cache .hypothesis .coverage
