"""The measured programs: each is a process of its own, and ends with a line of JSON."""
