"""Dataset catalog, downloads and image formats."""
