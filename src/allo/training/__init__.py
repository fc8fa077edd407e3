"""Trainers on selected weights, their arguments and their checkpoints."""
