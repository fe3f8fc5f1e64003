"""Models: from a name or a source to a folder of weights, and what a method makes of a base."""
