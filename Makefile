# make leaderboard   evaluates the embedded board afresh and prints its table
# make test          lint, types and tests
# make bench         side-by-side measurements of speed, for docs/performance.md
# make evidence      long runs behind the claims of the README
# make peers         what needs torchattacks, foolbox and ART, in an environment of their own, .venv-peers
# make gate          the board's entries against their committed records, on as few samples as it takes
# make format        formats the code
# make clean         removes .venv and everything generated that git ignores, runs/ excepted
#
# Each target makes .venv by itself. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BOARD ?= leaderboards/digits-linf.yaml
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: leaderboard test gate bench evidence peers format clean

leaderboard: .venv/core.stamp
	$(BIN)/rbvit run $(BOARD)

# Test processes share the cores: one thread each.
test: export OMP_NUM_THREADS = 1
test: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -q -n 2

# Entries with the committed weights are not evaluated; two are all the same, so that changed code is noticed.
gate: .venv/core.stamp
	$(BIN)/rbvit gate $(BOARD) --out runs/gate-committed
	$(BIN)/rbvit gate $(BOARD) --out runs/gate-committed --always --entry cnn-standard --entry vit-norm-decay

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.architectures

evidence: .venv/test.stamp
	$(BIN)/python -m benchmarks.evidence

peers: .venv-peers/stamp
	.venv-peers/bin/python -m benchmarks.parity --side torchattacks
	.venv-peers/bin/python -m benchmarks peers

format: .venv/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/core.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "robustbench_vit needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv; this takes a few minutes the first time."
	$(INSTALL) -e .
	touch $@

# The tools we are compared with; their versions stand here, so that a change of this file installs them again.
# torchattacks pins an old release of requests, which would drag others back; it only downloads weights with it.
.venv-peers/stamp: Makefile pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	@echo "Installing into .venv-peers; this takes a few minutes the first time."
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[reference]' tqdm requests==2.34.2 foolbox==3.3.4 eagerpy==0.30.0 GitPython==3.2.1 \
	  adversarial-robustness-toolbox==1.20.1 six==1.17.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
	touch $@

.venv/test.stamp: .venv/core.stamp
	$(INSTALL) -e '.[test]'
	touch $@
