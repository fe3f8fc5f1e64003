"""Fitting a method's tunable scalar at each extension factor, on data that no test uses."""
