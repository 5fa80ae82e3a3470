PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: demo study lint test types docs package lower-bounds clean

demo: $(INSTALLED)
	$(RUN) -m studies.digits

study: $(INSTALLED)
	$(RUN) -m studies fashion-mnist

lint: $(INSTALLED)
	$(RUN) -m ruff check .

test: lint
	$(RUN) -m pytest -n 2 --dist worksteal

types: $(VENV)/.dev
	$(RUN) -m pyright

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# the package is built and installed alone; what it needs is taken from $(VENV): DEPENDENCIES= downloads it
DEPENDENCIES ?= $(abspath $(shell $(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'))
package: $(INSTALLED)
	DEPENDENCIES=$(DEPENDENCIES) tests/package.sh $(RUN)

# the oldest releases that pyproject.toml allows
LOWEST = $(VENV)-lowest
lower-bounds: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 1

$(LOWEST)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -e '.[test]' $$(sed -n "s/^    '\(.*\)>=\(.*\)',$$/\1==\2/p" pyproject.toml)
	touch $@

$(INSTALLED): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e '.[test]'
	touch $(INSTALLED)

$(VENV)/.dev $(VENV)/.docs: $(INSTALLED)
	$(RUN) -m pip install -e '.[$(subst .,,$(notdir $@))]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info output site
