"""A rewriting model: data to train it on, and its training. The scorer that uses it is `allo.tokens.scorers.rewriter`."""
