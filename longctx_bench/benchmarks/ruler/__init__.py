"""RULER's tasks beside its needles (NVIDIA/RULER, arXiv 2404.06654)."""
