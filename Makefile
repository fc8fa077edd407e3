# One environment, one entry for each thing that people and CI do. `make` alone lists them.
BIN := .venv/bin
STAMP := .venv/.installed
# Demo and tests run tiny models, which a second thread slows down.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lowest slow gpu lint site wheel mutants invariants tables families

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(STAMP)  ## make .venv and install allo in it, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## run the whole method on a small model (CPU, no download) and write a report
	$(BIN)/allo demo --out runs/demo
	@echo "Report: runs/demo/report.html"

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# A few files of each room that other libraries' versions can break.
LOWEST := tests/test_public.py tests/baselines tests/cli tests/delta/test_delta_shira.py tests/losses/test_trl_parity.py \
	tests/models/test_internals.py tests/models/test_models.py tests/models/test_shared_prompts.py \
	tests/recipe/test_recipe.py tests/files/test_rows_refused.py tests/report/test_report.py \
	tests/sampling/test_endpoint.py tests/training/test_checkpointing.py tests/training/test_trainer.py \
	tests/training/test_training_arguments.py

lowest:  ## the tests that versions break, at the lowest versions of pyproject.toml, in .venv-lowest (15 minutes)
	test -x .venv-lowest/bin/python || python3 -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --no-compile -c constraints-lowest.txt -e '.[dev]'
	.venv-lowest/bin/python -m pytest -q -n 2 $(LOWEST)

slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m "slow and not gpu"

gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/allo

site: $(STAMP)  ## the documents as a site, in build/site; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/site
	@echo "First page: build/site/README.html"

# In a clean environment and outside this folder, so that nothing is taken from the source tree.
wheel: $(STAMP)  ## build the wheel, install it in a new environment, and run the demo there (10 minutes)
	rm -rf dist build/clean
	$(BIN)/python -m hatchling build
	python3 -m venv build/clean
	build/clean/bin/python -m pip install --quiet --no-compile -c constraints.txt dist/*.whl
	here=$$PWD; cd $$(mktemp -d) && $$here/build/clean/bin/allo demo --out demo && test -s demo/report.html \
		&& echo "Report: $$PWD/demo/report.html"

mutants: $(STAMP)  ## change the code where a fault would pass unseen, and see which changes no test notices (hours)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[mutants]'
	$(BIN)/python -m benchmarks.mutants.run --max-children 2

invariants: $(STAMP)  ## write docs/invariants.md from the tests' markers, and the tables of docs/diagnosis.md and docs/scaling.md
	$(BIN)/python scripts/render_invariants.py
	$(BIN)/python scripts/render_diagnoses.py
	$(BIN)/python scripts/render_migrating.py
	$(BIN)/python scripts/render_scaling.py

tables: $(STAMP)  ## write the tables of README.md and docs from benchmarks/results
	$(BIN)/python scripts/render_tables.py

families: $(STAMP)  ## try every family of models on tiny random checkpoints (under an hour), then write its table
	$(BIN)/python -m benchmarks.families.run --jobs 2
	$(BIN)/python scripts/render_tables.py
