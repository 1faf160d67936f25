"""Small networks with lively batch norms, and random images."""

import pytest
import torch

from gkp.data import Split, fingerprint
from gkp.nets import models


def random_split(n: int, size: int = 32, classes: int = 10, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(n) % classes
    names = tuple(str(c) for c in range(classes))
    return Split(images, labels, "digits", "train", names, fingerprint(images, labels), n)


def lively(network: str, seed: int = 0) -> torch.nn.Module:
    """A network whose batch norms differ between channels, as after training; eval mode."""
    torch.manual_seed(seed)
    model = models.create(network)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            torch.nn.init.normal_(module.running_mean, 0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="session")
def images() -> Split:
    return random_split(48)


@pytest.fixture(scope="session")
def resnet8() -> torch.nn.Module:
    """Deepcopy it before changing it."""
    return lively("resnet8")


@pytest.fixture(scope="session")
def resnet20() -> torch.nn.Module:
    """Deepcopy it before changing it."""
    return lively("resnet20")


@pytest.fixture(scope="session")
def thin_vgg16() -> torch.nn.Module:
    """VGG-16 with a quarter of its filters. Deepcopy it before changing it."""
    widths = [width if width == "M" else width // 4 for width in models.VGG16_WIDTHS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "VGG16_WIDTHS", widths)
        return lively("vgg16")


@pytest.fixture(scope="session")
def vgg16() -> torch.nn.Module:
    """Deepcopy it before changing it."""
    return lively("vgg16")
