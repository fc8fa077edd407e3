"""Sampling of completions: in this process, through vLLM, or at servers."""
