"""Ray executor: batches on the workers of a Ray cluster."""
