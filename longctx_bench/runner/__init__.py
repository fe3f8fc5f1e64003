"""From a plan to stored scores: cells, requests, batches on executors."""
