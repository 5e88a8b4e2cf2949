"""Attacks, each a test of what is right."""
