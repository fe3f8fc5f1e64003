"""Fitting a method's scalar, parameters or factors at each extension factor, on data that no test uses."""

HEAD_FIT_TASKS = "niah,niah_multikey,niah_multiquery,niah_multivalue"
"""Tasks that the temperatures of heads are fitted to by default."""

RETRIEVAL_TASKS = "niah,niah_multikey"
"""Tasks that one scalar for all heads, and a method's parameters, are fitted to by default."""
