"""Training of hash functions: data, augmentation, losses, the loop."""
