"""Forms of the method that were tried and did not help, kept runnable: `python -m experiments.MODULE`."""
