"""What a step of a lane computes before its update: the attack on the batch, logits, losses.

The same operations every time; none waits for a GPU or draws a number, so that a CUDA graph can hold them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gkp.attacks.ascent import Trace
from gkp.train.fleet.flat import Flat
from gkp.train.losses import answered, objective
from gkp.train.recipe import Recipe
from gkp.utils.logits import as_logits


class Passes(nn.Module):
    """A network that reads its weights from the leaves of `flat`, as attacks call it, and its losses.

    teacher: on the device, in eval mode; None for recipes that have none.
    """

    def __init__(self, model: nn.Module, flat: Flat, recipe: Recipe, teacher: nn.Module | None) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher
        self.normalize = getattr(model, "normalize", None)  # for attacks in its units
        self.flat, self.recipe = flat, recipe

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = functional_call(self.model, self.flat.leaves, (x,))
        return output

    def logits(self, x: Tensor) -> Tensor:
        """(B, classes) float32, of pixels x (B, C, H, W)."""
        with self._autocast(x):
            # A copy where a gradient at the pixels is asked for: a network may work in place.
            outputs = self(x.to(self.flat.values.dtype, copy=x.requires_grad))
        return as_logits(outputs, len(x)).float()

    def losses(self, x: Tensor, y: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy and what the recipe minimises, scalars, and whether all on the way was finite.

        x: (B, C, H, W) pixels; y: (B,) int64; starts: (draws, B, C, H, W) in [-1, 1] for the recipe's attack.
        """
        recipe, trace = self.recipe, Trace(deferred=True)
        if recipe.adversarial:
            with self._autocast(x):
                x = recipe.adversarial.perturb(self, x, y, generator=iter(starts), trace=trace)
        outputs = self.logits(x.requires_grad_(recipe.gradient_penalty > 0))
        with self._autocast(x):
            answers = answered(self.teacher, x) if self.teacher else None
        cross_entropy = F.cross_entropy(outputs, y)
        loss = objective(recipe, cross_entropy, outputs, x, answers)
        finite = torch.isfinite(loss.detach())
        return cross_entropy.detach(), loss, finite & trace.finite() if recipe.adversarial else finite

    def _autocast(self, x: Tensor) -> torch.autocast:
        # A graph must not find weights that were cast before it was recorded.
        half = self.recipe.precision == "bfloat16"
        return torch.autocast(x.device.type, torch.bfloat16, enabled=half, cache_enabled=False)
