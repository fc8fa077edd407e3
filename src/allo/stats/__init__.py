"""Intervals, tests and curves over seeds and problems."""
