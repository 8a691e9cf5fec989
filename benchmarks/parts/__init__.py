"""Parts of the benchmark: each module runs its commands in turn and makes a table."""
