"""The pipeline: one module per box of `dvc dag`."""
