"""What must hold of a training: before its first step, so that nothing fails after an epoch, and in each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.copying import copied
from gkp.train.history import TITLES
from gkp.train.recipe import Recipe
from gkp.utils.logits import (
    HALF,
    check_classes,
    check_network,
    class_labels,
    logits,
    run,
    weight_type,
)

if TYPE_CHECKING:
    from gkp.attacks import Attack


def check_arguments(recipe: Any, teacher: Any, attacks: Collection[str], test: Split | None) -> None:
    """ValueError unless the recipe and the teacher are some, and attacks have images and names of their own.

    attacks: the names of those that are made after every epoch.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"the recipe is a {type(recipe).__name__}: give gkp.Recipe(epochs=..., lr=..., ...)")
    if not isinstance(teacher, nn.Module | None):
        raise ValueError(f"the teacher is a {type(teacher).__name__}: give a network")
    if attacks and test is None:
        raise ValueError("attacks are made on the test images after every epoch: give test too")
    if taken := TITLES.keys() & attacks:
        raise ValueError(f"an attack is called {min(taken)!r}, as a clean score is: give it another name")


def check(model: nn.Module, splits: Mapping[str, Split]) -> None:
    """ValueError unless these data and this network can train: uint8 images, labels that are classes,
    finite logits (N, classes), weights of at least float32; TypeError for what is no network. Leaves the
    model in eval mode."""
    check_network(model)
    if "training" not in splits:
        raise ValueError("there are no training data: give a gkp.data.Split, such as gkp.data.load makes")
    if next(model.parameters(), None) is None:
        raise ValueError("the network has no parameters: there is nothing to train")
    if (kind := weight_type(model)) in HALF:
        raise ValueError(
            f"the weights are {kind}, in which small updates are lost: train model.float(), for instance "
            'with Recipe(precision="bfloat16"), and convert it afterwards'
        )
    for part, split in splits.items():
        if not isinstance(split, Split):
            raise ValueError(
                f"the {part} data are a {type(split).__name__}: give a gkp.data.Split, such as "
                "gkp.data.load, load_folder or of_tensors make"
            )
        if len(split) == 0:
            raise ValueError(f"the {part} data are empty: give at least one image")
        if split.images.dtype != torch.uint8:
            raise ValueError(f"the {part} images are {split.images.dtype}: give uint8 (gkp.data.Split)")
        class_labels(split.labels, len(split.images))
    # One image through the network costs little; on a GPU a label out of range ends in a device assertion.
    model.eval()
    with torch.no_grad():
        classes = logits(model, first_image(model, splits["training"])).shape[1]
    for split in splits.values():
        check_classes(int(split.labels.min()), int(split.labels.max()), classes)


def placed(model: nn.Module, device: torch.device) -> None:
    """Move the model, in place, with weights of 2d convolutions laid out channels last, which is faster."""
    model.to(device)
    _lay_out(model, torch.channels_last)


def placed_for(model: nn.Module, split: Split, device: torch.device) -> torch.memory_format:
    """`placed`, and the layout that images must have: channels last, unless the network fails on that.

    A view of feature maps does; then the weights are laid out the usual way, too. The model is in eval mode.
    """
    placed(model, device)
    image = first_image(model, split).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        try:
            run(model, image)
        except ValueError:  # `check` has run it on the usual layout
            _lay_out(model, torch.contiguous_format)
            return torch.contiguous_format
    return torch.channels_last


def laid_last(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers (O, I, kh, kw) that lie channels last."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name for name, tensor in named if _layout(tensor) == torch.channels_last}


def placed_back(model: nn.Module, last: Collection[str]) -> None:
    """What was true before `placed`, in place: channels last for what is in `last` (`laid_last`) alone.

    Gradients go, which the training has left.
    """
    model.zero_grad(set_to_none=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _lay(tensor, torch.channels_last if name in last else torch.contiguous_format)


def _layout(tensor: Tensor) -> torch.memory_format:
    """By its strides, which tell it of single channels and kernels of one pixel too."""
    strides, usual = tensor.stride(), _strides(tensor, torch.contiguous_format)
    last = tensor.dim() == 4 and strides != usual and strides == _strides(tensor, torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _strides(tensor: Tensor, layout: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta", memory_format=layout).stride()


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        _lay(tensor, layout)


def _lay(tensor: Tensor, layout: torch.memory_format) -> None:
    """Give a tensor (O, I, kh, kw) the strides of `layout`, in place.

    Tensor.contiguous leaves some as they are: of one channel, both layouts are contiguous.
    """
    if tensor.dim() == 4 and tensor.stride() != _strides(tensor, layout):
        tensor.data = tensor.data.clone(memory_format=layout)


def check_attacks(model: nn.Module, split: Split, attacks: Iterable[Attack]) -> None:
    """ValueError for an attack that this network and these pixels do not allow, such as AutoAttack."""
    x = first_image(model, split)
    y = split.labels[:1].to(x.device, torch.long)
    for attack in attacks:
        attack.perturb(model, x, y, generator=torch.Generator())


def first_image(model: nn.Module, split: Split) -> Tensor:
    """(1, C, H, W) pixels of the first image, on the model's device."""
    return split.pixels(slice(1)).to(next(model.parameters()).device)


def joins_last(model: nn.Module, train: Split, batch_size: int) -> bool:
    """Whether a last batch of one image must go with the batch before it.

    A batch norm behind a pooling to 1x1 has a single value per channel then, and no variance. Other
    networks train on one image, and do so here, as always. ValueError where there is no batch before, or
    where two images are too few as well.
    """
    if len(train) % batch_size not in (0, 1) or (batch_size > 1 and len(train) % batch_size == 0):
        return False
    image = first_image(model, train)
    if (problem := _refusal(model, image)) is None:
        return False
    if batch_size == 1 or len(train) == 1 or _refusal(model, image.repeat(2, 1, 1, 1)):
        raise ValueError(
            f"the network cannot train on batches of one image ({problem}): give at least two images and "
            "Recipe(batch_size=2) or more"
        )
    return True


def _refusal(model: nn.Module, images: Tensor) -> str | None:
    """What the network says against training on these images; None where it trains."""
    trial = copied(model).train()
    # What watches the network is to see its training only.
    trial._forward_hooks.clear()
    trial._forward_pre_hooks.clear()
    with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        try:
            run(trial, images)
        except ValueError as error:  # the type that batch norms raise
            return str(error)
    return None


def diverged(epoch: int, recipe: Recipe) -> RuntimeError:
    """The error of a training whose loss is no number any more."""
    return RuntimeError(
        f"the training loss stopped being a finite number in epoch {epoch}: lower "
        + (f"gradient_penalty (now {recipe.gradient_penalty:g}) or " if recipe.gradient_penalty else "")
        + f"Recipe.lr (now {recipe.lr:g}), or use precision='float32' if it was another"
    )
