"""What fine-tuning can minimise beside the cross entropy: a teacher's answers, the gradient at the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.nets.channels.copying import copied
from gkp.train.checks import first_image, placed_for
from gkp.utils.logits import forward, logits

if TYPE_CHECKING:
    from gkp.data import Split
    from gkp.train.hooks import Hooks
    from gkp.train.recipe import Recipe


def gradient_norm(cross_entropy: Tensor, x: Tensor) -> Tensor:
    """Mean over the images of the squared L2 norm of their cross entropy's gradient at the pixels, a scalar.

    cross_entropy: the mean over images x (N, C, H, W) in [0, 1], which require a gradient. It can be
    differentiated again (double backpropagation), which is what trains (Ross & Doshi-Velez 2018).
    """
    (gradient,) = torch.autograd.grad(cross_entropy, x, create_graph=True)
    return len(x) * gradient.square().sum()  # the mean has 1/N of each image's gradient


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the classes at temperature T, mean over the images (Hinton et al. 2015).

    student, teacher: logits (N, classes). The factor keeps gradients as large as at temperature 1.
    """
    log_student, log_teacher = (F.log_softmax(outputs / temperature, 1) for outputs in (student, teacher))
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


@torch.no_grad()
def answered(teacher: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, classes) of the teacher, float32."""
    return forward(teacher, x).float()


def objective(
    recipe: Recipe, cross_entropy: Tensor, outputs: Tensor, x: Tensor, answers: Tensor | None
) -> Tensor:
    """What the recipe minimises, a scalar; outputs, answers: logits (N, classes) of network and teacher at x.

    With a gradient penalty x requires a gradient.
    """
    loss = cross_entropy
    if answers is not None:
        loss = torch.lerp(loss, divergence(outputs, answers, recipe.temperature), recipe.distillation)
    if recipe.gradient_penalty:
        loss = loss + recipe.gradient_penalty * gradient_norm(cross_entropy, x)
    return loss


# ---- before the first step -----------------------------------------------------------------------


def prepared(
    model: nn.Module,
    teacher: nn.Module | None,
    recipe: Recipe,
    hooks: Hooks,
    train: Split,
) -> nn.Module | None:
    """A copy of the teacher on the model's device, which learns nothing; None for recipes that have none.

    ValueError where recipe, teacher, network and method do not go together.
    """
    if recipe.distillation and teacher is None:
        raise ValueError(
            f"distillation={recipe.distillation:g} needs a network to learn from: give teacher=, mostly the "
            "network before pruning"
        )
    if teacher is not None and not recipe.distillation:
        raise ValueError("nothing is learned from the teacher: give Recipe(distillation=...) a share above 0")
    if hooks.loss and (recipe.distillation or recipe.gradient_penalty):
        raise ValueError(
            "the pruning method trains with a loss of its own: leave distillation and gradient_penalty out "
            "of the recipe"
        )
    if recipe.gradient_penalty:
        refuse_without_second_gradient(model, train)
    if teacher is None:
        return None
    teacher = copied(teacher).eval().requires_grad_(False)
    placed_for(teacher, train, next(model.parameters()).device)
    classes = [logits(net, first_image(net, train)).shape[1] for net in (teacher, model)]
    if classes[0] != classes[1]:
        raise ValueError(
            f"the teacher has {classes[0]} outputs and the network {classes[1]}: give a teacher of the same "
            "classes"
        )
    return teacher


def refuse_without_second_gradient(model: nn.Module, train: Split) -> None:
    """ValueError for a network in which a gradient at the pixels has no gradient at the weights."""
    trial, image = copied(model), first_image(model, train).requires_grad_()
    label = train.labels[:1].long().to(image.device)
    try:
        gradient_norm(F.cross_entropy(forward(trial, image), label), image).backward()
    except RuntimeError as error:
        raise ValueError(
            "gradient_penalty needs a gradient of the gradient at the pixels, which this network has not "
            f"({error}): take torch.no_grad(), detach and functions that are differentiable once out of its "
            "forward pass, or leave gradient_penalty out"
        ) from error
