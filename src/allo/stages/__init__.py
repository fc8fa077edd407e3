"""The verbs of a run, one a file: `run(recipe, run)` reads records, calls core, writes records."""
