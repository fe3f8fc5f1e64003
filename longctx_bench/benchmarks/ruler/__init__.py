"""RULER's tasks other than needle in a haystack (NVIDIA/RULER, arXiv 2404.06654)."""
