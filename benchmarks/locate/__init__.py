"""Ways of locating weights, compared by overlap and accuracy."""
