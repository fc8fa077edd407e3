"""The steps of a run, one a file: `run(recipe, run)` reads records, does the work and writes records."""
