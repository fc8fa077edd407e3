"""Standard tasks through EleutherAI's lm-eval on any model that allo makes, and our own tasks in its format."""
