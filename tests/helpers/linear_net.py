"""A linear network of ten classes, for which what an image withstands is known exactly."""

import torch

EPS = 0.03


def withstands(model, x, y, eps):
    """(N,) bool: z_y - z_j > eps * ||w_y - w_j||_1 for every other class j."""
    weight = model[1].weight
    with torch.no_grad():
        logits = model(x)
    margins = logits.gather(1, y[:, None]) - logits
    lost = eps * (weight[y][:, None] - weight[None]).abs().sum(2)
    return ((margins > lost) | (torch.arange(10) == y[:, None])).all(1)
