"""gkp.utils.precision, and that everything that compares or attacks computes in it."""

import pytest
import torch
from small_training import VALIDATION

import gkp
from gkp.attacks import Attack, fgsm
from gkp.evaluate import outcome
from gkp.nets.models import CifarResNet
from gkp.utils.precision import full_precision


def settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(params=[True, False])
def rounding(request):
    before = settings()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = request.param
    yield (request.param, request.param)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Watched(CifarResNet):
    """Notes in which precision it is run."""

    seen: set

    def forward(self, x):
        type(self).seen.add(settings())
        return super().forward(x)


@pytest.fixture
def watched():
    Watched.seen = set()
    torch.manual_seed(0)
    return Watched(8)


def test_settings_come_back_also_after_an_error(rounding):
    def fail():
        with full_precision():
            assert settings() == (False, False)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert settings() == rounding


def test_attacks_compute_in_full_precision(rounding, watched):
    x, y = VALIDATION.pixels(slice(4)), VALIDATION.labels[:4]
    outcome(watched, x, y, Attack("pgd", eps=0.01, step=0.01, iterations=2))
    fgsm(watched, x, y, eps=0.01)
    assert (Watched.seen, settings()) == ({(False, False)}, rounding)


@pytest.mark.parametrize("method", ["l1", "sr-gkp", "thinet", "taylor"])
def test_pruning_computes_in_full_precision(rounding, watched, method):
    example = VALIDATION.pixels(slice(1))
    data = VALIDATION if gkp.pruners.get(method).needs.startswith("images") else None
    gkp.prune(watched, method, example_input=example, data=data)
    assert (Watched.seen, settings()) == ({(False, False)}, rounding)
