"""Which channels of a network go together, found by experiment, and taking them out with a proof."""
