"""Records and plots of comparisons between methods."""
