# All developer commands. `make help` lists them; nothing is installed outside .venv.

PYTHON ?= python3
EXTRAS ?=
RECIPE ?= laboratories
TARGETS ?= cpu
LEUKO_DATA ?= ../shared/data
ARGS ?=
# Processes that run tests, each with one thread of torch's: tests wait for the services that they start.
WORKERS ?= 5

VENV ?= .venv
BIN := $(VENV)/bin
# Every file is checked against its hash in the lock; packages that are not in the lock are refused. uv, not
# pip, installs torch: pip may pick a wheel that does not match torchvision.
VERIFY := --require-hashes --constraint requirements.lock --requirement pyproject.toml
install = $(BIN)/uv pip install --python $(1)/bin/python $(VERIFY)
# Our own code has no hash; the packages that build it have one.
LINK := $(BIN)/uv pip install --python $(BIN)/python --no-deps --build-constraint requirements.lock --editable . --editable client
# The lock's entries of the given packages, with hashes.
entries = sed -n -E '/^($(subst $(space),|,$(strip $(1))))==/,/[^\\]$$/p' requirements.lock
FULL := $(VENV)/.full
QUICK := $(VENV)/.quick
space := $(subst ,, )
BASE := $(VENV)/.base-$(subst $(space),-,$(EXTRAS))
YAML_STYLE := '{extends: default, rules: {document-start: disable, line-length: {max: 110}}}'
INPUTS := pyproject.toml requirements.lock
# The archives of each recipe. In another place: docs/training.md, "Where the data is".
ARCHIVES_laboratories := bccd=blood-cells pbc=pbc-cells pbc=pbc-others lisc=lisc-cells raabin=raabin-cells
ARCHIVES_default := blood-cells=blood-cells pbc-cells=pbc-cells
ARCHIVES_paper := bccd=blood-cells
ARCHIVES_pbc := pbc=pbc-cells pbc=pbc-others
ARCHIVES ?= $(foreach each,$(ARCHIVES_$(RECIPE)),$(subst =,=$(LEUKO_DATA)/,$(each)).zip)
DATA_default := --leave-out basophil erythroblast ig platelet
DATA_laboratories := --sources $(LEUKO_DATA)/raabin-sources.csv --others basophil erythroblast ig platelet
DATA_pbc := --classes "basophil,eosinophil,erythroblast,immature granulocyte,lymphocyte,monocyte,band,segmented neutrophil,platelet" \
    --labels training/recipes/pbc-labels.csv --leave-out "unspecified neutrophil" --split 70:10:20
MANIFEST := data/$(RECIPE).csv
RUN := runs/$(RECIPE)
BUNDLE_laboratories := models/wbc-resnet18
BUNDLE_default := $(RUN)/bundle
BUNDLE_paper := $(RUN)/bundle
BUNDLE_pbc := $(RUN)/bundle
NAME_pbc := wbc-pbc
BUNDLE ?= $(BUNDLE_$(RECIPE))
VERSION ?= 3.0.0
# The model card compares a run of the paper's recipe with the paper, if there is such a run.
PAPER_laboratories := $(if $(wildcard runs/paper/bundle/report.json),--paper runs/paper/bundle)
# Initial weights: this file if it exists, else torchvision downloads them.
INITIAL ?= $(wildcard $(LEUKO_DATA)/resnet18-imagenet-trunk.npz)
START := $(if $(INITIAL),--set 'initial="$(INITIAL)"')
# The recipe `laboratories` starts from the weights that the recipe `default` makes.
HOME_WEIGHTS ?= runs/default/bundle/model.safetensors
START_laboratories = --set 'initial="$(HOME_WEIGHTS)"' $(if $(INITIAL),--set 'initial_elsewhere="$(INITIAL)"')
HOME_laboratories := $(HOME_WEIGHTS)
# Freed tensors stay with the process: page faults would take half of the training's time.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=100000000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
PEERS := litserve bentoml ray
EXTRA_ray := [serve]
NETWORK := numpy pillow safetensors threadpoolctl openvino torch python-multipart
# A full environment can serve as well; the base one is enough.
SERVING := $(if $(wildcard $(FULL)),$(FULL),$(BASE))

.DEFAULT_GOAL := help
.PHONY: help setup install serve test check docs ops image fuzz soak audit train bundle bench bench-peers format lock

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' Makefile | awk -F@ '{ line = sprintf("%-18s", $$1); n = split($$2, words, " "); \
	    for (i = 1; i <= n; i++) { if (length(line words[i]) > 80) { print line; line = sprintf("%18s", "") } \
	    line = line words[i] " " } print line }' | sed 's/ *$$//'

setup: $(FULL) ## install everything: service, training, development tools

install: $(SERVING) ## install the service, and extras: EXTRAS="client score"
	@echo "Installed: $(BIN)/leuko"

serve: $(SERVING) ## run the service on loopback; EXTRAS=torch for a GPU, ARGS="--port 8080"
	@exec $(BIN)/leuko serve $(ARGS)

test: $(FULL) ## run the tests; ARGS="-m quick" those of a minute, ARGS="-k batching", WORKERS=0 in one process
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not ops' -n $(WORKERS) --dist worksteal $(ARGS)

check: $(FULL) ## what continuous integration runs: format, lint, types, documentation, then the tests
	@$(BIN)/python client/generate.py --check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python .ci/docs.py --check
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/shellcheck .ci/run .ci/engine .ci/base-image .ci/image
	@$(BIN)/yamllint --strict --config-data $(YAML_STYLE) docker-compose.yml .pre-commit-config.yaml ops
	@$(MAKE) --no-print-directory test

docs: $(FULL) ## write the tables of the documentation that come from the code
	@$(BIN)/python .ci/docs.py

ops: $(FULL) ## long tests: Ray and replicas killed, torchrun, alerts, the paper's recipe, the image
	@$(BIN)/python -m pytest -q -m ops $(ARGS)

image: ## build the images with the container engine that is there; TARGETS="cpu cuda"
	@.ci/image $(TARGETS)

fuzz: $(FULL) ## fuzz decoding and archive reading; ARGS="--seconds 600"
	@$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(FULL) ## load a service for a while, with 10% bad requests, and watch for leaks
	@$(BIN)/python -m benchmarks.soak $(ARGS)

# First the inventories, which need no network. Then every pin without its markers, so that packages for other
# platforms are looked up too; a pin that the vulnerability database does not know fails like a vulnerable one.
audit: $(FULL) ## list installed packages as CycloneDX in build/sbom, and look up known vulnerabilities of every pin
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/base
	$(call install,build/base) --quiet
	$(BIN)/python .ci/sbom.py build/base build/sbom/base.cdx.json
	$(BIN)/python .ci/sbom.py $(VENV) build/sbom/full.cdx.json
	sed -E 's/ ;.*\\$$/ \\/' requirements.lock > build/audit.txt
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement build/audit.txt $(ARGS) \
	    || { echo "make: NOT AUDITED, or a known vulnerability: see above" >&2; exit 1; }

train: $(FULL) $(MANIFEST) $(HOME_$(RECIPE)) ## train on the real data in LEUKO_DATA; RECIPE=paper, ARGS=--resume
	@$(KEEP_MEMORY) $(BIN)/leuko-train fit --recipe $(RECIPE) --manifest $(MANIFEST) --run $(RUN) $(or $(START_$(RECIPE)),$(START)) $(ARGS)

bundle: train ## train, then make the bundle and its model card; RECIPE=paper, BUNDLE=models/mine, VERSION=1.0.0
	@$(BIN)/leuko-train export --manifest $(MANIFEST) --run $(RUN) --out $(BUNDLE) --name $(or $(NAME_$(RECIPE)),$(notdir $(BUNDLE))) --version $(VERSION) --replace
	@$(BIN)/leuko-train report --manifest $(MANIFEST) --run $(RUN) --bundle $(BUNDLE) --replace $(PAPER_$(RECIPE))

bench: $(FULL) ## benchmark the service against its bare engine and a service without batching, as ratios
	@$(BIN)/python -m benchmarks.ratios

bench-peers: $(FULL) $(PEERS:%=.venv-peers/%/.done) ## benchmark the service against LitServe, BentoML and Ray Serve, each in .venv-peers
	@$(BIN)/python -m benchmarks.peers

format: $(FULL) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python client/generate.py

lock: $(BIN)/uv ## update requirements.lock from pyproject.toml; ARGS="--upgrade"
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	    --fork-strategy fewest --all-extras --group dev --group build --generate-hashes \
	    --custom-compile-command "make lock" \
	    $(ARGS) --output-file requirements.lock

runs/default/bundle/model.safetensors:
	@$(MAKE) --no-print-directory bundle RECIPE=default ARGS=

$(MANIFEST): | $(FULL)
	$(BIN)/leuko-train data $(ARCHIVES) $(DATA_$(RECIPE)) --out $@

# Packages that the network needs as in our lock, the peer in any version.
.venv-peers/%/.done: requirements.lock | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(call entries,$(NETWORK)) > $(@D)/pins.txt
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --constraint $(@D)/pins.txt '$*$(EXTRA_$*)' $(NETWORK)
	@touch $@

$(FULL): $(INPUTS) | $(BIN)/uv
	$(call install,$(VENV)) --extra train --extra dicom --extra hub --extra otel --extra score --group dev
	$(LINK)
	@touch $@

# What the quick tests need, which is neither torch nor Ray; no package is built.
$(QUICK): $(INPUTS) | $(BIN)/uv
	$(call install,$(VENV)) --only-binary :all: --extra dicom --extra hub --extra otel --group dev
	$(LINK)
	@touch $@

$(BASE): $(INPUTS) | $(BIN)/uv
	$(call install,$(VENV)) $(EXTRAS:%=--extra %)
	$(LINK)
	@touch $@

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found: set PYTHON=/path/to/python3.11 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "make: Leuko needs Python 3.11 or later, this is %d.%d: set PYTHON=/path/to/it" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@$(call entries,uv) | $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --requirement /dev/stdin 2> $(VENV)/uv.log || { \
	    if grep -qiE 'connect|timed out|timeout|resol|unreachable|proxy|ssl' $(VENV)/uv.log; then \
	    echo "make: the network: uv could not be downloaded. Installing needs the network, and behind a proxy" \
	    "HTTPS_PROXY. Details: $(VENV)/uv.log" >&2; else cat $(VENV)/uv.log >&2; fi; exit 1; }
