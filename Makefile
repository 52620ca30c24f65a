# Names for the common commands. All go through ./run, so that the tools are those of the lock files.
.PHONY: check unit test golden docs

WORKFLOW := Snakefile $(sort $(wildcard workflow/rules/*.smk))

# Format, lint and types, of the code and of the workflow. Changes nothing.
check:
	./run ruff format --check pipeline tests benchmarks
	./run ruff check pipeline tests benchmarks
	./run mypy
	./run mypy --strict pipeline/dag pipeline/config pipeline/artifacts
	./run snakefmt --check $(WORKFLOW)
	./run snakemake --lint

# At every save: starts no engine.
unit:
	./run pytest tests/unit

# Everything.
test:
	./run pytest

# When results are meant to change (CONTRIBUTING.md): runs scale smoke and rewrites tests/golden.json from it.
golden:
	./run snakemake --cores 2 --config scale=smoke
	./run python -m tests.golden results

# config/README.md and the JSON schemas, from the configuration models.
docs:
	./run python -m pipeline config --write
