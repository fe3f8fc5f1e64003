"""A paper's tables and figures: published numbers next to measured ones."""
