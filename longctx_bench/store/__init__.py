"""What was measured: one folder per run, one file of records per cell, and the types of what stands in them."""
