"""Intervals, paired tests, effective length, position bias."""
