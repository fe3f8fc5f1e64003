"""Benchmarks: from a task spec to examples, without a model."""
