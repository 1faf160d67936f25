"""Numbers about the method itself that are computed, not trained."""
