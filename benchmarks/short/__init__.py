"""The ratios of ``bench.py``."""
