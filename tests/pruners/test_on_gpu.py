"""Every method on a GPU: it removes what it removes on the CPU, and the network stays there."""

import pytest
import torch
from small_training import random_split

import gkp
from gkp.nets.models import CifarResNet
from gkp.pruners.common.registry import get
from gkp.train import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
DATA = random_split(64, size=16)
# These draw or train, which two devices do alike but not bit for bit.
CHANCE = {name for name in gkp.methods() if get(name).start or get(name).needs}


@pytest.mark.parametrize("method", gkp.methods())
def test_a_gpu_prunes_as_the_cpu_does(method):
    torch.manual_seed(0)
    model, pruned = CifarResNet(14), {}
    options = {"data": DATA, "recipe": Recipe(epochs=2, batch_size=32)} if get(method).needs else {}
    if method == "tmi-gkp":
        options = {"snapshots": [{n: p.detach() for n, p in model.named_parameters()}]}
    for device in ("cpu", "cuda"):
        example = DATA.pixels(slice(1)).to(device)
        pruned[device] = gkp.prune(model.to(device), method, example_input=example, **options)
    weights = dict(pruned["cuda"].named_parameters())
    assert all(weight.is_cuda for weight in weights.values())
    for name, weight in pruned["cpu"].named_parameters():
        assert weights[name].shape == weight.shape
        if method not in CHANCE:
            torch.testing.assert_close(weights[name].cpu(), weight)
