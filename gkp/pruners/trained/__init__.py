"""Methods that prune while the network trains, and what they do to its training."""
