VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# What tests/parity compares our reward models with. Their dependencies contradict ours and each other: none are installed.
REFERENCES = hpsv2x==1.2.0 image-reward==1.5 imscore==0.0.11 torchmetrics==1.9.0 \
	lightning-utilities==0.15.3 clint==0.5.1 args==0.1.0
# A tracker of `report_to`. It asks for Pillow < 13 and runs with newer ones; what else it needs is in setup.cfg's `test`.
TRACKER = trackio==0.43.0

.PHONY: demo test test-tools style browser docs pictures

# The whole of CRAFT on an embedded tiny SDXL: generate, score, filter, train, evaluate. Ends with a verdict and a report.
demo: $(VENV)/.installed
	$(BIN)/craft run recipes/tiny

# Three workers keep two cores busy: some tests wait for processes and servers. Four take longer.
test: $(VENV)/.installed-test browser
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests -m "not tools" -n 3 --dist loadfile --no-loadscope-reorder

# Of the benchmarks, the examples and the making of the tiny models, which take minutes more.
test-tools: $(VENV)/.installed-test browser
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests -m tools -n 3 --dist loadfile --no-loadscope-reorder

# What tests/filtering/test_sheet.py drives. Only root can install it, with a network; without it those tests are skipped.
browser:
	@if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium chromium-driver fonts-dejavu-core \
		|| echo "No browser: the tests of the contact sheet are skipped."; \
	fi

style: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache setup.cfg

# The site of docs/source, in build/docs. Once its packages are installed it needs no network.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

# The pictures of docs/source/images, from the demo's run, and the notebooks of examples/notebooks with their outputs.
pictures: demo browser $(VENV)/.installed-test
	$(BIN)/python docs/pictures.py --run runs/tiny --output docs/source/images
	HF_HUB_OFFLINE=1 $(BIN)/python examples/notebooks/execute.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg | $(BIN)/python
	$(BIN)/python -m pip install --progress-bar off -e .
	touch $@

$(VENV)/.installed-test: setup.cfg Makefile | $(BIN)/python
	$(BIN)/python -m pip install --progress-bar off -e ".[test]"
	$(BIN)/python -m pip install --progress-bar off --no-deps $(REFERENCES) $(TRACKER)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: setup.cfg | $(BIN)/python
	$(BIN)/python -m pip install --progress-bar off -e ".[docs]"
	touch $@ $(VENV)/.installed
