"""Speed and memory of the pipeline, compared with baselines."""
