"""Near-duplicates: pairs of near codes, calibration, groups, reports."""
