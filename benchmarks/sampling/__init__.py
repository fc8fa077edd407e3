"""Sampling speed, in this process and at a server."""
