# make repro  from photographs to the first table, with params.yaml as it stands (profile=tiny|mini|bench|paper composes it first)
# make all    every figure and table        make test  the tests        make lab  JupyterLab        make bench  speed of each part
SHELL := /bin/bash
PYTHON ?= python3
core := chain
parts := figures tables paper scores log ranker predictor analysis

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv

.PHONY: repro all paper book test lab bench publish compose data

repro: compose data
	dvc repro $(core)
	@python -m srnb.report.compare || true
	@echo; echo "Profile $$(sed -n 's/^profile: //p' params.yaml). Look at out/tables, out/figures, out/sr (photographs), out/nbs (what was run); results/ holds the published run."

all: compose data
	dvc repro
	@python -m srnb.report.compare || true

test: data
	nbdev_test --path nbs/library --n_workers 2
	python -m pytest -q

lab: data
	jupyter lab --notebook-dir=nbs --LabApp.default_url=/lab/tree/index.ipynb

# one figure or table and no more (item=ranksrgan_table_4); without item the list of them
paper: compose data
	@python -m srnb.pipeline.items $(item)
	$(if $(item),@python -m srnb.report.compare || true)

# the notebooks as executed, as linked pages to read offline: out/book
book: .venv/ready
	python -m srnb.pipeline.book

bench: data
	python -m srnb.tools.bench
	python -m srnb.tools.bench_train

# keep this run's results for those who only read; parts='tables paper scores' where its figures show photographs that are not ours to pass on
publish:
	p=results/$$(sed -n 's/^profile: //p' params.yaml); mkdir -p $$p; for f in $(parts); do rm -rf $$p/$$f; [ ! -e out/$$f ] || cp -r out/$$f $$p; done; find $$p -name '*.npz' -delete -o -regex '.*/\(ranker\|predictor\)/.*csv' ! -name '*_report.csv' -delete; cp params.yaml $$p

compose: .venv/ready
	$(if $(profile),@python -m srnb.pipeline.run --compose $(profile))

# the photographs lie in the repository's own store: no network
data: .venv/ready
	@dvc pull --quiet data.dvc

.venv/ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "srnb needs Python 3.11 or later, and '$(PYTHON)' is not: install it, or name another with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "srnb needs Python's venv module: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	pip install --quiet -c constraints.txt -e '.[dev]'
	# pyiqa asks for opencv-python, which asks for libGL; the headless build takes its place, so that only its files are left
	pip install --quiet -c constraints.txt --force-reinstall --no-deps opencv-python-headless
	rm -rf .venv/lib/python3*/site-packages/{opencv_python.libs,cv2/qt}
	@touch $@
