"""lm-eval, both ways: its tasks on our methods, and our methods as a model of its command line."""
