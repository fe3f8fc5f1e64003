"""Figures in one restrained style; each function takes plain data and returns a matplotlib figure, saved apart."""
