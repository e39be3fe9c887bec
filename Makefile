# `make` lists what there is. Python 3.11 to 3.13, make and git are enough; everything is installed into this folder and nowhere else.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help setup reproduce figures check test test-lowest notebooks bench readme html site wheel lock clean

## PAPER=head_ct      one source only, or "head_ct ct_report" (default: all of them)
PAPER =
## PROFILE=small      smoke: phantoms, CPU, minutes | small: real images, one machine | paper: the sources' own sizes
##                    or a YAML file of your own (default: smoke; figures: all that have records)
PROFILE =
## DATA=folder        where the downloaded data sets lie (profile smoke needs none)
DATA =
## JOBS=2             how many jobs at once (default: as many as there are cores)
JOBS =
## PYTHON=python3.12  the Python to build the environment from (default: the newest that fits)
PYTHON ?=
## SAVE=1             bench: also write benchmarks/results/<name>.json
SAVE =
## NOTEBOOK=nbs/…     notebooks: only this one
NOTEBOOK =
## REPOSITORY=https://… site: where the repository lies, for links to files (default: `repository` in settings.ini, or none)
REPOSITORY =
## UPGRADE=1          lock: take the newest versions instead of keeping the locked ones
UPGRADE =

# an environment of ours sees its own packages only, whatever module system the shell comes from
unexport PYTHONHOME PYTHONPATH
export UV_PYTHON_DOWNLOADS := never

bin := .venv/bin
uv_version := 0.13.8
tools := .make/uv-$(uv_version)
uv := $(tools)/bin/uv
chosen := $(if $(PROFILE),--profile "$(PROFILE)") $(foreach p,$(PAPER),--paper "$(p)")
run := $(chosen) $(if $(DATA),--data "$(DATA)") $(if $(JOBS),--jobs $(JOBS))

help: ## this list
	@echo 'gan_covid: does GAN-based augmentation help when medical images are few?'
	@echo; echo 'Targets'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo; echo 'Variables'
	@awk '/^## / {print "  " substr($$0, 4)}' Makefile

# --- the work -------------------------------------------------------------------------------------------------------------------

reproduce: .venv/.done ## run what is missing or changed, up to tables and figures (does the setup first)
	$(bin)/gan-covid reproduce $(run)

# the full environment if there is one, else a light one with neither TensorFlow nor torch
light := $(if $(wildcard .venv/.done),.venv,.venv-figures)
figures: $(light)/.done ## draw all tables and figures again from records/, without any training
	$(light)/bin/gan-covid figures $(chosen)

# The papermill batch of the tests: the smallest whole run, into folders of its own ($$tmp, removed afterwards)
batch = $(bin)/gan-covid reproduce --profile smoke --paper head_ct --work "$$tmp/work" --records "$$tmp/records" \
    --figures "$$tmp/figures"

# One thread a notebook: two workers of two threads would wait for each other. pytest goes last: its closing line is the
# verdict. nbs/runs and nbs/papers are papermill's: the batch runs them. Tests of a file share what they trained: loadfile;
# the order of the files is that of tests/conftest.py, the longest first.
test: .venv/.done ## what CI runs: the notebooks, a small papermill batch, then pytest
	OMP_NUM_THREADS=1 $(bin)/nbdev-test --n-workers 2 --do-print --skip-folder-re '^([_.]|runs$$|papers$$)'
	tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && $(batch)
	$(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Everything that can be said of a change within minutes. The formatter and the export are tried without changing a file.
check: .venv/.done ## before every commit: export, style, stored outputs, the quick tests
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/python workflow/notebooks.py check
	$(bin)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

notebooks: .venv/.done ## run the library's and the papers' notebooks and store their outputs
	$(bin)/python workflow/notebooks.py run $(NOTEBOOK)

# What settings.ini promises is the lowest versions: the parts that hang most on the engines' inner life run with them.
lowest = tests/test_stylegan2_ops.py tests/test_stylegan2_networks.py tests/test_engines.py tests/test_evaluation.py tests/test_intervals.py tests/test_comparisons.py tests/test_plotting.py
test-lowest: .venv-lowest/.done ## the tests that depend most on other packages, with the lowest versions that settings.ini allows (7 GB)
	.venv-lowest/bin/python -m pytest $(lowest)

bench: .venv/.done ## run benchmarks/bench_*.py: speed against the plain way of doing the same
	@$(if $(SAVE),mkdir -p benchmarks/results)
	@for b in benchmarks/bench_*.py; do echo "== $$b"; \
	    $(bin)/python "$$b" $(if $(SAVE),--json "benchmarks/results/$$(basename "$$b" .py).json") || exit 1; done

# links in nbs/index.ipynb start with ../, as seen from nbs/; README.md stands one floor up
readme: .venv/.done ## README.md from nbs/index.ipynb: its text, and the tables that it computes
	$(bin)/python workflow/notebooks.py run nbs/index.ipynb
	$(bin)/python -m nbconvert --log-level WARN --to markdown --no-input --output-dir .make --output README nbs/index.ipynb
	sed 's#](\.\./#](#g' .make/README.md > README.md

html: $(light)/.done ## the papers' notebooks, executed, as pages in work/html
	$(light)/bin/python -m nbconvert --to html --execute --output-dir work/html nbs/papers/*.ipynb

# Nothing is executed: outputs are shown as they are stored. Pages and their source are made from README, nbs/ and gan_covid/.
site: .venv-site/.done ## README, notebooks and the API as a site in work/site: one minute, no network once it is set up
	.venv-site/bin/python docs/pages.py .make/site $(REPOSITORY)
	GAN_COVID_ROOT="$(CURDIR)" .venv-site/bin/python -m sphinx --quiet --jobs auto .make/site work/site
	@echo 'site: work/site/index.html'

wheel: $(light)/.done ## dist/*.whl: the package with the notebooks, profiles and records that its commands need
	$(uv) build --quiet --wheel --no-build-isolation --python $(light)/bin/python --out-dir dist .

# --- environments ---------------------------------------------------------------------------------------------------------------

setup: .venv/.done ## the full environment in .venv, from requirements.lock (8 GB)

.venv/.done: requirements.lock
.venv-figures/.done: requirements-figures.lock
.venv-lowest/.done: requirements-lowest.lock
.venv-site/.done: requirements-site.lock
.venv/.done .venv-figures/.done .venv-lowest/.done .venv-site/.done: settings.ini setup.py pyproject.toml | $(uv)
	@env=$(@D); lock=$(filter %.lock,$^); $(call find_python,$(tools)/bin/python); \
	"$$env/bin/python" -c '$(fits)' 2>/dev/null || "$$python" -m venv --clear --without-pip "$$env" || exit 1; \
	echo "setup: $$lock -> $$env"; \
	quiet=; [ -t 2 ] || quiet=--quiet; \
	$(uv) pip sync $$quiet --python "$$env/bin/python" --require-hashes "$$lock" && \
	$(uv) pip install --quiet --python "$$env/bin/python" --no-deps --no-build-isolation --editable . && \
	touch $@

$(uv):
	@$(find_python); mkdir -p .make; \
	echo "setup: uv $(uv_version) with $$python"; \
	"$$python" -m venv --clear $(tools) > .make/venv.log 2>&1 || { cat .make/venv.log; \
	    echo "setup: $$python cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; } >&2; \
	$(tools)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(uv_version)

# is this Python within the range of settings.ini? (true also has to parse in Python 2)
fits = import configparser, sys; c = configparser.ConfigParser(); c.read("settings.ini"); c = c["DEFAULT"]; \
    lo, hi = [tuple(map(int, c[k].split("."))) for k in ("min_python", "max_python")]; sys.exit(not lo <= sys.version_info[:2] < hi)

# sets $$python to the full path of the first Python that fits: PYTHON if given, else the one named here, else the newest
define find_python
python=; if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; else set -- $(1) python3.13 python3.12 python3.11 python3; fi; \
	for p in "$$@"; do \
	    "$$p" -c '$(fits)' 2>/dev/null && python=$$("$$p" -c 'import sys; print(sys.executable)') && break; done; \
	[ -n "$$python" ] || { echo "setup: $$* - none of these is a Python from $(call ini,min_python) to below $(call ini,max_python)." \
	    "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }
endef
ini = $(shell sed -n 's/^$(1) *= *//p' settings.ini)

compile = $(uv) pip compile --quiet --python $(tools)/bin/python --universal --python-version $(call ini,min_python) \
    --fork-strategy fewest --generate-hashes --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

lock: | $(uv) ## requirements*.lock from settings.ini, constraints.txt and docs/requirements.in
	$(compile) pyproject.toml --all-extras --constraints constraints.txt --output-file requirements.lock
	$(compile) pyproject.toml --extra build --constraints requirements.lock --output-file requirements-figures.lock
	$(compile) pyproject.toml --extra build --extra engines --extra dev --resolution lowest-direct --output-file requirements-lowest.lock
	$(compile) docs/requirements.in --output-file requirements-site.lock

clean: ## remove environments, caches and work/ with its checkpoints; records/ and figures/ stay
	rm -rf work .venv .venv-figures .venv-lowest .venv-site .make .snakemake .pytest_cache build dist *.egg-info
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
