"""What stands in a file with weights: our own format, those of other tools, those published."""
