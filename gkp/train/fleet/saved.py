"""A lane's training as the state that `gkp.train.fine_tune` saves: either continues what the other began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gkp.train.fleet.lane import Lane
from gkp.train.history import History
from gkp.train.recipe import sgd
from gkp.train.state import load_state, save_state


def save(lane: Lane, about: dict[str, str]) -> None:
    """Write the state file of the member, whole or not at all; about: its `identity`."""
    path = lane.member.state_path
    if path is not None:
        save_state(path, about, snapshot(lane))


def snapshot(lane: Lane) -> dict[str, Any]:
    """The content of a state file."""
    flat, hooks = lane.flat, lane.member.hooks
    return {
        "model": lane.weights(flat.values, flat.statistics, lane.epoch),
        "optimizer": _optimizer(lane),
        "hooks": hooks.state_dict() if hooks.state_dict else {},
        **lane.course().state_dict(),
    }


def restore(lane: Lane, about: dict[str, str]) -> None:
    """Put the saved state back where there is one; StateError when it is damaged or of another training."""
    path = lane.member.state_path
    if path is None or not Path(path).exists():
        return
    content = load_state(path, about)
    lane.history = History.from_state_dict(content)
    flat = lane.flat
    trained = flat.named(flat.values) | flat.running.views(flat.statistics)
    _copy(lane.wide.widen(content["model"]), trained)
    names = [name for name, _ in lane.member.model.named_parameters()]
    momenta = {names[i]: state["momentum_buffer"] for i, state in content["optimizer"]["state"].items()}
    _copy(lane.wide.widen(momenta), flat.named(flat.momentum))
    flat.refresh()
    if lane.member.hooks.load_state_dict:
        lane.member.hooks.load_state_dict(content["hooks"])


def _copy(values: dict[str, torch.Tensor], places: dict[str, torch.Tensor]) -> None:
    for name, place in places.items():
        if name in values:
            place.copy_(values[name])


def _optimizer(lane: Lane) -> dict[str, Any]:
    """What torch.optim.SGD would save: momenta by the number of the parameter."""
    state = sgd(lane.member.model, lane.member.recipe).state_dict()
    if lane.epoch:
        state["param_groups"][0]["lr"] = lane.history.epochs[-1].lr
        momenta = lane.wide.narrowed(lane.flat.named(lane.flat.momentum))
        names = [name for name, _ in lane.member.model.named_parameters()]
        copies = (momenta[name].detach().to("cpu", copy=True).contiguous() for name in names)
        state["state"] = {i: {"momentum_buffer": momentum} for i, momentum in enumerate(copies)}
    return state
