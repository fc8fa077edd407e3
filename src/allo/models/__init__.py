"""Models of transformers: loading, checks and log-probs; and text to token ids."""

from allo.models.internals import check

check(__name__)
check("allo.weights.layout")
