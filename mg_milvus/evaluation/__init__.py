"""How well pictures are found: protocols, figures, the tuning of weights, and a report."""
