"""The backward pass of whole rows and columns."""
