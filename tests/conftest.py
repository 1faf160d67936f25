"""Real data and public networks for the tests that need them; those skip where there are none."""

import os

import pytest


def _need(variable):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")


@pytest.fixture(scope="session")
def cifar10_test():
    """CIFAR-10's test split from GKP_DATA."""
    _need("GKP_DATA")
    from gkp import data

    return data.load("cifar10", "test", root=os.environ["GKP_DATA"])


@pytest.fixture(scope="session")
def ak20():
    """akamaster's ResNet-20 from GKP_CHECKPOINTS; deepcopy it before changing it."""
    _need("GKP_CHECKPOINTS")
    from gkp import zoo

    return zoo.load_model("resnet20", weights="akamaster")


@pytest.fixture(scope="session")
def authors20():
    """The authors' baseline ResNet-20 from GKP_CHECKPOINTS; deepcopy it before changing it."""
    _need("GKP_CHECKPOINTS")
    from gkp import zoo

    return zoo.load_model("resnet20", weights="authors")
