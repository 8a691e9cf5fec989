"""The parts of the benchmark: each module runs its contenders and makes a table."""
