"""Win rates between two answers: a judge behind an endpoint, its verdicts, and files for other judges' tools."""
