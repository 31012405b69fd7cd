# `make` prints what there is. Variables: profile=tiny|mini|mini_sets|bench|paper composes params.yaml anew before anything runs; without it
# params.yaml runs as it stands, edits included; with='metrics=full ratings=people' replaces what a profile says. PYTHON=python3.12 names another Python for the environment.
SHELL := /bin/bash
PYTHON ?= python3
core := chain

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv

.DEFAULT_GOAL := help
.PHONY: help repro all paper book lab check test-fast test test-pipeline test-others bench publish compose data

help:                    ## this list
	@echo 'Minutes are of two CPU cores; the first command also makes the environment (4 minutes, 7 GB in .venv).'; echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=$$'\t' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

# run

run = $$(sed -n 's/^profile: //p' params.yaml)
compared = @if [ -d results/$(run)/scores ]; then python -m srnb.report.compare || true; else echo "Profile $(run) has no published run to compare with."; fi

repro: compose data      ## 25 min  from photographs to RankSRGAN and its first table, in out/ (profile=tiny: 2 min)
	python -m srnb.pipeline.repro $(core)
	$(compared)
	@echo; echo "Profile $(run). Look at out/tables, out/figures, out/sr (photographs), out/nbs (what was run); results/ holds the published run."

all: compose data        ## 4 h     every network, figure, table and verdict (profile=tiny: 13 min)
	python -m srnb.pipeline.repro
	$(compared)

paper: compose data      ## 5 s     the papers' figures and tables with their state; item=ranksrgan_table_4 makes one and what it needs
	@python -m srnb.pipeline.items $(item)
	$(if $(item),$(compared))

book: .venv/ready        ## 1 min   the executed notebooks as linked pages to read offline, in out/book
	python -m srnb.pipeline.book

lab: data                ## 10 s    JupyterLab at the notebooks, which it keeps clean as it saves them
	jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb --ContentsManager.pre_save_hook=nbdev.clean.clean_jupyter

# check

check: .venv/ready       ## 1 min   linter, types, order of the modules, srnb/ in step with its notebooks, notebooks clean
	ruff check --quiet
	mypy
	python -m pytest -q tests/test_library.py

test-fast: data          ## 5 min   library notebooks and the quick tests
	nbdev_test --path nbs/library --n_workers 2
	python -m pytest -q -m 'not slow and not browser' --durations=10

test: check data         ## 21 min  everything: check, library notebooks, all tests, and the whole pipeline at its smallest
	$(MAKE) --no-print-directory -j2 test-pipeline test-others

test-pipeline test-others: export OMP_WAIT_POLICY := passive    # side by side: a thread that waits leaves its core to the other
test-pipeline:
	python -m pytest -q --durations=10 tests/test_pipeline.py
test-others:
	nbdev_test --path nbs/library --n_workers 1
	python -m pytest -q --durations=10 --ignore=tests/test_pipeline.py

bench: data              ## 10 min  speed of each part on this machine
	python -m srnb.tools.bench
	python -m srnb.tools.bench_train

publish: .venv/ready     ## 1 s     keep this run in results/ for those who only read (parts='tables paper scores' without pictures)
	python -m srnb.pipeline.publish $(parts)

# what the above stand on

compose: .venv/ready
	$(if $(profile),@python -m srnb.pipeline.run --compose $(profile) $(with),$(if $(with),$(error with= replaces parts of a profile: name it, profile=mini)))

data: .venv/ready        # the photographs lie in the repository's own store: no network
	@dvc pull --quiet data.dvc

.venv/ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "srnb needs Python 3.11 or later, and '$(PYTHON)' is not: install it, or name another with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "srnb needs Python's venv module: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	pip install --quiet -c constraints.txt -e '.[dev]'
	# pyiqa asks for opencv-python, which asks for libGL; the headless build takes its place, so that only its files are left
	pip install --quiet -c constraints.txt --force-reinstall --no-deps opencv-python-headless
	rm -rf .venv/lib/python3*/site-packages/{opencv_python.libs,cv2/qt}
	# how git merges and shows notebooks (.gitconfig, .gitattributes): nbdev_install_hooks would do it, and write into the user's home besides
	[ ! -e .git ] || git config --get-all include.path '^\.\./\.gitconfig$$' >/dev/null || git config --add include.path ../.gitconfig
	@touch $@
