"""``ruler@paper``: NVIDIA/RULER's own scripts, reproduced byte for byte."""
