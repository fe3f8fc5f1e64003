"""What is measured about models, methods and engines rather than by a task: calibration, parity, probes."""
