"""The Python functions that ``longctx_bench`` offers: run, report, compare, figures, load, export, calibrate."""
