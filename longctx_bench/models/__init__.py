"""Models: sources of weights to local checkpoint folders, and base models with methods applied."""
