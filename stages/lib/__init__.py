"""Modules that the stages share, kept small because each is a DVC dependency."""
