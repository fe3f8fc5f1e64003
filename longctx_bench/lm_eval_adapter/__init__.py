"""lm-eval adapter: its tasks on our models, and our models on its command line."""
