"""The vLLM engine, and DroPE as a vLLM model."""
