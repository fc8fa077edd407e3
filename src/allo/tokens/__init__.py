"""Which tokens: scorers, and the weights that their scores give each token of a wrong completion."""
