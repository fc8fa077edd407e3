"""Peak memory of training and locating."""
