"""Speed and memory of the pipeline, side by side with what a person would use instead."""
