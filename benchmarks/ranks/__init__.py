"""Recipes on several processes: what ends them, and how much faster they are."""
