"""Training hash functions from labelled or unlabelled images."""
