"""Trainers on selected weights, their arguments and their checkpoints."""

from allo.models.internals import check

check(__name__)
