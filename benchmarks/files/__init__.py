"""Masks and deltas on disk: time, memory and size."""
