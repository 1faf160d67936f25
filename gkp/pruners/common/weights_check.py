"""Weights that no method can judge."""

from __future__ import annotations

import torch
from torch import nn


def refuse_non_finite(model: nn.Module) -> None:
    """ValueError naming the first parameter or buffer of the state that holds NaN or infinity.

    NaN compares as neither more nor less than any score, so that a method would keep or drop such a filter
    by accident. Waits for a GPU once where everything is finite.
    """
    tensors = {name: value for name, value in model.state_dict().items() if _can_be_nan(value)}
    if not tensors:
        return
    # A sum of |w| would overflow in half precision; the largest |w| cannot, and is NaN where one is.
    largest = torch.stack([torch.linalg.vector_norm(value, torch.inf).double() for value in tensors.values()])
    for (name, value), finite in zip(tensors.items(), torch.isfinite(largest).tolist(), strict=True):
        if not finite:
            wrong = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"{name} holds NaN or infinity in {wrong} of its {value.numel()} numbers: load weights from "
                "before training diverged"
            )


def _can_be_nan(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
