"""Modules shared by the tools."""
