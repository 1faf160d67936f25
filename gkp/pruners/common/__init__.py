"""What pruning methods share: their table, cuts of filters, images to score with, the target of a cost."""
