"""LongBench (Bai et al. 2023, arXiv 2308.14508)."""
