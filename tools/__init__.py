"""Command-line tools, run by hand and not by DVC."""
