"""What is timed: each module is a process of its own, and ends with a line of JSON."""
