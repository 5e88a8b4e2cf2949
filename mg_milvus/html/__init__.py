"""Templates and the pages made of them."""
