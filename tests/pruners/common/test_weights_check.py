"""Weights that no method can judge are refused by their name."""

import copy

import pytest
import torch
from torch import nn

from gkp.pruners.common.weights_check import refuse_non_finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.bn1.running_var", "linear.bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_tensor_is_named(resnet8, value, name, dtype) -> None:
    model = copy.deepcopy(resnet8).to(dtype)
    refuse_non_finite(model)
    tensor = model.state_dict()[name]
    tensor.view(-1)[1] = value
    with pytest.raises(ValueError, match=rf"^{name} holds NaN or infinity in 1 of its {tensor.numel()} "):
        refuse_non_finite(model)


def test_large_and_odd_weights_are_fine() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64)).half()
    model[0].weight.data.fill_(torch.finfo(torch.float16).max)
    model.register_buffer("empty", torch.empty(0))
    model.register_buffer("integer", torch.tensor([3]))
    refuse_non_finite(model)
    refuse_non_finite(nn.ReLU())
