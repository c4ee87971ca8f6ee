# make help lists the targets. Everything that a run writes goes to nemo-experiments/.

# The virtual environment. Empty (make tutorial VENV=) uses PYTHON as it is, e.g. in a container.
VENV ?= .venv
# Makes the virtual environment; python3.11 and python3.12 are tried next.
PYTHON ?= python3
# More arguments for pip install, e.g. an index with smaller wheels of torch.
PIP_ARGS ?=

# What make tutorial runs on, and under which name it keeps the results.
PROFILE ?= tiny
TICKETS ?= data/tickets.csv
RUN_NAME ?= demo
EXPERIMENTS ?= nemo-experiments
PAPERMILL_ARGS ?=
PYTEST_ARGS ?=
LAB_ARGS ?=

NOTEBOOKS := 01_explore_tickets 02_prepare_jsonl 03_train_lora 04_evaluate_and_export
RESULTS := $(EXPERIMENTS)/results/$(RUN_NAME)
SOURCES := $(wildcard ticketlib tests data benchmarks docs notebooks)
IPYNB := $(wildcard notebooks/*.ipynb)
NBSTRIPOUT := --extra-keys 'metadata.papermill cell.metadata.papermill'
RST := $(wildcard *.rst data/*.rst data/*/*.rst benchmarks/*.rst docs/*.rst)

# The kernel `python3` has to be the environment's own.
unexport JUPYTER_PATH
export JUPYTER_PREFER_ENV_PATH := 1
ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
INSTALLED :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
MADE_BY_US := $(VENV)/made-by-make
INSTALLED := $(VENV)/installed
export PATH := $(abspath $(VENV))/bin:$(PATH)
unexport PYTHONPATH
endif

.PHONY: help install tutorial lab test lint format figures clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo 'Settings, as in make tutorial RUN_NAME=first TICKETS=tickets.csv:'
	@echo '  PROFILE=$(PROFILE)  TICKETS=$(TICKETS)  RUN_NAME=$(RUN_NAME)  EXPERIMENTS=$(EXPERIMENTS)'
	@echo '  VENV=$(VENV) (VENV= uses the python on PATH)  PYTHON=$(PYTHON)'
	@echo '  PYTEST_ARGS=  LAB_ARGS=  PIP_ARGS='
	@echo "  PAPERMILL_ARGS='-p lora_rank 4' sets any parameter of the notebooks. To list them:"
	@echo '    $(if $(strip $(VENV)),$(VENV)/bin/)papermill --help-notebook notebooks/03_train_lora.ipynb'

install: $(INSTALLED) ## Make the virtual environment; the other targets do this when needed

# Only a finished install leaves the file `installed`; a folder that make did not make is left alone.
ifneq ($(INSTALLED),)
$(INSTALLED): pyproject.toml constraints.txt
	@if [ -e '$(VENV)' ] && [ ! -e '$(MADE_BY_US)' ]; then \
		echo '$(VENV) exists and was not made by make. Remove it, name another folder (VENV=...), or use' >&2; \
		echo 'an environment of your own: activate it, then add VENV= to the command.' >&2; \
		exit 1; \
	fi
	@for python in '$(PYTHON)' python3.11 python3.12; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
			echo "Making $(VENV) with $$python, $$("$$python" --version). This takes about 3 minutes and 3 to 8 GB."; \
			rm -rf '$(VENV)' && mkdir -p '$(VENV)' && touch '$(MADE_BY_US)' && exec "$$python" -m venv '$(VENV)'; \
			exit 1; \
		fi; \
		echo "$$python is not Python 3.11 or 3.12: $$("$$python" --version 2>&1 | head -n 1)" >&2; \
	done; \
	echo 'Install Python 3.11 or 3.12 and name it: make PYTHON=/path/to/python3.11 ...' >&2; \
	exit 1
	$(PY) -m pip install --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[notebooks,test,dev]'
	$(PY) -m pip check
	@echo 'Compiling on all cores (pip would take one)'
	@$(PY) -m compileall -q -j 0 -x '/(tests?|ray)/' '$(VENV)/lib' >'$(VENV)/compileall.log' || true
	@touch '$@'
endif

# A parameter goes to the notebooks that have it; one that none has is a wrong call, exit code 2.
# Where nobody looks at a terminal, papermill logs what the cells print, and progress is a line a minute.
tutorial: $(INSTALLED) ## Run the four notebooks headless, from the CSV to the exported model
	$(if $(findstring /,$(RUN_NAME)),$(error RUN_NAME=$(RUN_NAME): give the name of one folder))
	$(if $(findstring ',$(RUN_NAME)$(TICKETS)$(EXPERIMENTS)),$(error Take the quote out of RUN_NAME, TICKETS and EXPERIMENTS))
	@mkdir -p '$(RESULTS)/notebooks' && rm -f '$(RESULTS)/report.html'
	@[ -t 2 ] || { log=--log-output; export TICKETLIB_BATCH=1; }; \
	for notebook in $(NOTEBOOKS); do \
		echo "== $$notebook, $$(date '+%Y-%m-%d %H:%M:%S')"; \
		$(PY) -m ticketlib.parameters "notebooks/$$notebook.ipynb" '$(RESULTS)/notebooks/'"$$notebook.ipynb" \
			--kernel python3 --language python -r run_name '$(RUN_NAME)' -r profile '$(PROFILE)' \
			-r experiments_dir '$(EXPERIMENTS)' -r tickets_csv '$(TICKETS)' \
			$$log $(PAPERMILL_ARGS) || { status=$$?; \
				[ $$status = 2 ] || echo "Stopped in $$notebook, $$(date '+%Y-%m-%d %H:%M:%S'), exit code" \
					"$$status. As far as it got: $(RESULTS)/notebooks/$$notebook.ipynb. There is no report.html." >&2; \
				exit $$status; }; \
	done
	@$(PY) -m ticketlib.publish '$(RESULTS)/notebooks/04_evaluate_and_export.ipynb' '$(RESULTS)/report.html'
	@echo
	@echo 'Done. All of it is in $(RESULTS):'
	@echo '  notebooks/          the four notebooks with their output and figures'
	@echo '  report.html         the verdict and the figures, without code, for those who decide'
	@echo '  dataset/report.csv  what was changed in the tickets, and why'
	@echo '  metrics.json        accuracy, macro-F1 and the rest, beside the baselines'
	@echo '  figures/            the figures'
	@echo '  exported/           the fine-tuned model, Hugging Face format, *.safetensors'

lab: $(INSTALLED) ## Open the notebooks in JupyterLab
	$(PY) -m jupyterlab --ServerApp.root_dir='$(CURDIR)' --LabApp.news_url=None $(LAB_ARGS) notebooks/01_explore_tickets.ipynb

# Two processes of one thread each: threads of the tiny models wait for each other more than they work.
test: $(INSTALLED) ## Run all tests, the notebooks included; PYTEST_ARGS="-m 'not notebook'" leaves those out
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(INSTALLED) ## Check code, notebooks and reStructuredText
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(if $(IPYNB),$(PY) -m nbstripout --verify $(NBSTRIPOUT) $(IPYNB))
	@set -e; for file in $(RST); do echo "docutils $$file"; $(PY) -m docutils --report=2 --halt=2 "$$file" /dev/null; done

format: $(INSTALLED) ## Put code and notebooks into the form that lint wants
	$(PY) -m ruff check --fix $(SOURCES)
	$(PY) -m ruff format $(SOURCES)
	$(if $(IPYNB),$(PY) -m nbstripout $(NBSTRIPOUT) $(IPYNB))

figures: $(INSTALLED) ## Draw the figures of README.rst and docs/ anew, from the results of make tutorial
	$(PY) docs/make_figures.py --run-name '$(RUN_NAME)' --experiments-dir '$(EXPERIMENTS)'

clean: ## Remove the virtual environment and caches; nemo-experiments/ stays
	@if [ -n '$(MADE_BY_US)' ] && [ -e '$(MADE_BY_US)' ]; then echo 'rm -rf $(VENV)'; rm -rf '$(VENV)'; fi
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(EXPERIMENTS) -prune -o -path ./.git -prune -o \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
	@if [ -e '$(EXPERIMENTS)' ]; then echo 'Kept: $(EXPERIMENTS)/ (results and models). Remove it yourself when you no longer need it.'; fi
