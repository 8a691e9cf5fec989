"""What is trained, and the file it becomes."""
