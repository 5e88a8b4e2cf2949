"""The web page and its API under ``/api``."""
