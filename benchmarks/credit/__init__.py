"""Token scorers, judged on planted flaws."""
