"""Retrieval quality: protocols, metrics, tuning of weights, reports."""
