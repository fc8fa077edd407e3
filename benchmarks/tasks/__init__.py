"""The tasks' verifiers and the overlap of their problems."""
