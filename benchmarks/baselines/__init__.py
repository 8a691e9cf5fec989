"""Measured programs; the last line of their output is JSON."""
