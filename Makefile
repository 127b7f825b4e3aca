# `make setup` builds .venv once; every other target needs it and costs no set-up the second time.
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test lint train-tiny train-click-bell

setup: $(STAMP)

# torch goes first and pinned: a later line that merely asks for "torch" must find it there already, or pip may take
# the newest build with gigabytes of CUDA libraries. The check runs last, so a set-up that can't render leaves no stamp.
$(STAMP): pyproject.toml constraints.txt scripts/setup_system.sh scripts/check_setup.py
	PYTHON=$(PYTHON) bash scripts/setup_system.sh
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(VENV)/bin/python scripts/check_setup.py
	touch $@

demo: setup
	$(VENV)/bin/python pipelines/demo.py --output outputs/demo

test: setup
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

train-tiny: setup
	$(VENV)/bin/accelerate launch pipelines/train_tiny.py --output runs/aim-tiny

train-click-bell: setup
	$(VENV)/bin/accelerate launch pipelines/train_tiny.py --tasks click_bell --output runs/aim-click-bell
