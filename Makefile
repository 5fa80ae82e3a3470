PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: demo study test clean

demo: $(INSTALLED)
	$(RUN) -m studies.digits

study: $(INSTALLED)
	$(RUN) -m studies fashion-mnist

test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n 2 --dist worksteal

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e '.[test]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info output
