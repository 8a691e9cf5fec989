"""What a person runs by hand, and DVC does not."""
