# make demo: train, compress, export and check a small model; make test: lint, types and all tests;
# make quick: style and the fast tests; make quick-all: the same with every Python that is here;
# make apk, make android-test: the demo app for phones and its tests (android_demo/README.md).
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test quick quick-all lint style types fuzz lock schemas sbom android apk android-test \
    android-checksums clean

demo: $(INSTALLED)
	$(VENV)/bin/python -P -m edgecompress.demo --output build/demo

test: lint
	$(VENV)/bin/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Under 90 seconds on two cores; a file whose tests take longer is marked `slow`.
quick: style
	$(VENV)/bin/pytest -q -n 2 --dist loadfile -m "not slow and not docs"

quick-all:
	scripts/quick_all.sh

lint: style types

style: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	# mypy does not see the mapped folders of an editable install; a tree of links shows it them.
	rm -rf build/src && mkdir -p build/src/edgecompress
	ln -s $(CURDIR)/edgecompress/* $(CURDIR)/converters $(CURDIR)/targets build/src/edgecompress/
	MYPYPATH=build/src $(VENV)/bin/mypy -p edgecompress

fuzz: $(INSTALLED)
	PYTHON=$(VENV)/bin/python benchmarks/fuzz/run.sh

# One after the other: both are Maven in one folder.
android:
	$(MAKE) android-test
	$(MAKE) apk

apk:
	android_demo/scripts/build_apk.sh --output build/edgecompress-demo.apk

android-test:
	android_demo/scripts/maven.sh --quiet test

# After a change of a version in pom.xml: what Maven fetches is compared with what is recorded here.
# A local repository of its own, so that all is fetched anew.
CHECKSUMS := android_demo/.mvn/checksums/checksums.sha256
android-checksums:
	rm -rf $(CHECKSUMS) build/m2 android_demo/target/artifacts android_demo/target/robolectric
	android_demo/scripts/maven.sh --quiet -Dmaven.repo.local=$(CURDIR)/build/m2 \
	    -Daether.artifactResolver.postProcessor.trustedChecksums.record=true \
	    -Daether.artifactResolver.postProcessor.trustedChecksums.failIfMissing=false \
	    test dependency:copy@apk
	LC_ALL=C sort -k 2 -o $(CHECKSUMS) $(CHECKSUMS)

# What requirements.lock was made for gets exactly its packages, each compared with its hash.
LOCKED_FOR := Linux x86_64 3.11
THIS := $(shell uname -sm) $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")
# Python compiles what is imported; compiling every file of TensorFlow takes longer.
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
ifeq ($(THIS),$(LOCKED_FOR))
	$(PIP) install --no-compile --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
else
	@echo "requirements.lock is for $(LOCKED_FOR), this is $(THIS): the newest packages are installed."
	$(PIP) install --no-compile -e '.[dev]'
endif
	touch $@

# After a change of requirements in pyproject.toml; UPGRADE=--upgrade takes the newest versions.
UPGRADE ?=
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile pyproject.toml --extra dev --generate-hashes --no-annotate --quiet \
	    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url \
	    --custom-compile-command "make lock" $(UPGRADE) --output-file requirements.lock

# The JSON schemas of docs/, from the forms that files are read with.
schemas: $(INSTALLED)
	$(VENV)/bin/python scripts/schemas.py

sbom: $(INSTALLED)
	$(VENV)/bin/python scripts/sbom.py

clean:
	rm -rf build $(VENV)
