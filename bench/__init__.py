"""Timings as ratios measured in one run; ``make benchmarks`` runs them all."""
