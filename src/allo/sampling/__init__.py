"""Completions: decoded in this process, by vLLM, or asked of servers."""
