# make demo: train, compress, export and check a small model; make test: lint, types and all tests;
# make apk, make android-test: the demo app for phones and its tests (android_demo/README.md).
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint apk android-test clean

demo: $(INSTALLED)
	$(VENV)/bin/python -P -m edgecompress.demo --output build/demo

test: lint
	$(VENV)/bin/pytest -q -n 2 --dist loadfile

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	# mypy does not see the mapped folders of an editable install; a tree of links shows it them.
	rm -rf build/src && mkdir -p build/src/edgecompress
	ln -s $(CURDIR)/edgecompress/* $(CURDIR)/converters $(CURDIR)/targets build/src/edgecompress/
	MYPYPATH=build/src $(VENV)/bin/mypy -p edgecompress

apk:
	android_demo/scripts/build_apk.sh --output build/edgecompress-demo.apk

android-test:
	cd android_demo && mvn --batch-mode --quiet --no-transfer-progress test

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV)
