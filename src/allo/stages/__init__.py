"""The steps of a run, one per file: `run(recipe, run)` reads records, does the work and writes records."""
