"""Labels and probabilities in, numbers and figures out."""
