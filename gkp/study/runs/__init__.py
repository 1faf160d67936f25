"""What is to be computed, and the records of what was."""
