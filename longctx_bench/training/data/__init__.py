"""What a training run reads: corpora, packed sequences, synthetic retrieval."""
