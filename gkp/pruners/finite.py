"""Networks whose weights are numbers."""

from __future__ import annotations

from torch import nn


def refuse_non_finite(model: nn.Module) -> None:
    """ValueError naming the first parameter or buffer of `model` with NaN or infinity in it.

    A filter of NaN would count as the most important one, and NaN logits as a right or wrong answer.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{name} holds NaN or infinite values: the checkpoint is damaged or training diverged; "
                "load another one"
            )
