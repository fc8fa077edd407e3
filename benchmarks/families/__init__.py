"""The families of models that allo trains, each on a tiny random checkpoint."""
