"""Which of two answers a model prefers: a judge behind an endpoint, its verdicts, and files for other judges' tools."""
