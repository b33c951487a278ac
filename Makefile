# make demo: train, compress, export and check a small model; make test: lint, types and all tests;
# make apk, make android-test: the demo app for phones and its tests (android_demo/README.md).
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint fuzz apk android-test android-checksums clean

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

fuzz: $(INSTALLED)
	PYTHON=$(VENV)/bin/python benchmarks/fuzz/run.sh

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

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV)
