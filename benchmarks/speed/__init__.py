"""Seconds, memory and traffic of a training step."""
