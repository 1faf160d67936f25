"""One forward pass in train mode, to see what replays of a recorded step would not do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkp.nets.channels.copying import copied
from gkp.utils.logits import run

COUNTER = "num_batches_tracked"


def unrepeatable(model: nn.Module, images: Tensor) -> str:
    """Why a graph of the network's step would train it otherwise than `fine_tune`; "" where it would not.

    images: (N, C, H, W) pixels, two or more, on the model's device. A graph keeps the parameters and the
    statistics of batch norms, and draws no random numbers. The model and the random state stay as they are.
    """
    trial = copied(model).train()
    norms = {name for name, module in trial.named_modules() if isinstance(module, _BatchNorm)}
    before = {name: buffer.clone() for name, buffer in trial.named_buffers()}
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        states = _random_states(devices)
        run(trial, images)
        drew = not all(map(torch.equal, states, _random_states(devices)))
    changed = [name for name, buffer in trial.named_buffers() if not torch.equal(buffer, before[name])]
    others = [name for name in changed if name.rpartition(".")[0] not in norms]
    twice = [
        name
        for name in changed
        if name not in others and name.endswith(COUNTER) and trial.get_buffer(name) > before[name] + 1
    ]
    if others:
        return f"its forward pass changes {others[0]}, which is no statistic of a batch norm"
    if twice:
        return f"{twice[0].rpartition('.')[0]} runs more than once in a forward pass"
    return "its forward pass draws random numbers" if drew else ""


def _random_states(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
