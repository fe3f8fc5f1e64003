"""Training: fresh models, DroPE recalibration, and the control that continues with positions."""
