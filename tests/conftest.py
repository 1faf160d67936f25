"""What several files share: real data and public networks (tests skip without), and small stand-ins."""

import functools
import http.server
import os
import threading

import pytest
from hypothesis import settings

# A machine that is busy with something else is no failure.
settings.register_profile("gkp", deadline=None)
settings.load_profile("gkp")


def _need(variable):
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")


@pytest.fixture(scope="session")
def cifar10_test():
    """CIFAR-10's test split from GKP_DATA."""
    _need("GKP_DATA")
    from gkp import data

    return data.load("cifar10", "test", root=os.environ["GKP_DATA"])


@pytest.fixture
def tiny(monkeypatch):
    """The suite "tiny": one-shot methods and one that prunes in training, on few digits."""
    from tiny_suite import IMAGES, tiny_suite

    from gkp import data
    from gkp.study.runs import suites

    load = data.load
    monkeypatch.setattr(data, "load", lambda name, part, **_: load(name, part).take(IMAGES))
    suite = tiny_suite("random", "l1", "sr-gkp", "sfp")
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: suite)
    return suite


@pytest.fixture(scope="module")
def net():
    """A small network to attack, in eval mode."""
    from attacked_nets import SmallNet

    return SmallNet().eval()


@pytest.fixture(scope="module")
def batch():
    """16 random images for `net`, as pixels, and labels."""
    import torch

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(16, 3, 8, 8, generator=generator)
    return x, torch.randint(10, (16,), generator=generator)


@pytest.fixture
def sandbox(tmp_path):
    """A copy of reproduce.sh with fakes of what it calls."""
    from script_sandbox import make_sandbox

    return make_sandbox(tmp_path)


@pytest.fixture(scope="session")
def ak20():
    """akamaster's ResNet-20 from GKP_CHECKPOINTS; deepcopy it before changing it."""
    _need("GKP_CHECKPOINTS")
    from gkp.nets import zoo

    return zoo.load_model("resnet20", weights="akamaster")


@pytest.fixture(scope="session")
def ak56():
    """akamaster's ResNet-56 from GKP_CHECKPOINTS; deepcopy it before changing it."""
    _need("GKP_CHECKPOINTS")
    from gkp.nets import zoo

    return zoo.load_model("resnet56", weights="akamaster")


@pytest.fixture(scope="session")
def authors20():
    """The authors' baseline ResNet-20 from GKP_CHECKPOINTS; deepcopy it before changing it."""
    _need("GKP_CHECKPOINTS")
    from gkp.nets import zoo

    return zoo.load_model("resnet20", weights="authors")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """serve(folder) -> address of a local web server over it, stopped after the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(folder):
        handler = functools.partial(_Quiet, directory=folder)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
