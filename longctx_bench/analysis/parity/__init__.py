"""Whether vLLM gives a method's numbers as transformers does."""
