"""Benchmarks: each module measures one thing and writes its record, `python -m benchmarks.FOLDER.MODULE` from the project root."""
