"""What is pruned: networks with weights, what they cost, layers of grouped kernels, files."""
