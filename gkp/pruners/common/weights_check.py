"""Networks and weights that no method can judge."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

GIVE = "give the torch.nn.Module itself"


def refuse_other_than_networks(model: Any) -> None:
    """TypeError for what is no nn.Module to take layers from; ValueError where it has no weights."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("this is a TorchScript module: prune the nn.Module it was made from")
    exported = isinstance(model, torch.export.ExportedProgram | torch.export.UnflattenedModule)
    # The module of an exported program has its own train and eval, which refuse to be called.
    if exported or (isinstance(model, fx.GraphModule) and "eval" in vars(model)):
        raise TypeError("this is a program of torch.export: prune the nn.Module it was made from")
    if isinstance(model, type):
        raise TypeError(f"the model is the class {model.__name__}: {GIVE}, such as {model.__name__}()")
    if isinstance(model, dict):
        raise TypeError(f"the model is a dictionary, such as a state_dict: {GIVE}, with these weights loaded")
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}: {GIVE}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{name} is a TorchScript module: put the nn.Module it was made from in its place"
            )
        place = name or "the network"
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if any(tensor is not None and is_lazy(tensor) for tensor in tensors):
            raise ValueError(
                f"{place}, a {type(module).__name__}, has no weights yet: run the network once on an example"
            )
        if any(tensor is not None and tensor.is_meta for tensor in tensors):
            raise ValueError(f"{place} is on the meta device and has no values: load its weights first")


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
