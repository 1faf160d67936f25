"""RobustBench's own benchmark on our images, and its model zoo."""

import sys

import pytest
import torch
from linear_net import EPS, withstands

from gkp.attacks import robustbench


def test_benchmark_of_the_package_on_our_images(model, images, capfd):
    x, y = images
    expected = withstands(model, x, y, EPS)
    part = torch.cat(
        [torch.arange(3), expected.nonzero().flatten()[:2], (~expected).nonzero().flatten()[3:8]]
    )
    clean, robust = robustbench.benchmark(model.train(), x[part], y[part], eps=EPS)
    assert (clean, robust) == (pytest.approx(0.7), pytest.approx(0.2))
    assert model.training
    assert sys.modules["robustbench.eval"].load_clean_dataset.__module__ == "robustbench.data"
    assert capfd.readouterr() == ("", "")


def test_benchmark_refuses(model, images):
    with pytest.raises(ValueError, match='"Linf" or "L2"'):
        robustbench.benchmark(model, *images, eps=EPS, threat_model="L1")
    with pytest.raises(ValueError, match="eps above 0"):
        robustbench.benchmark(model, *images, eps=0.0)
    x, y = images
    with pytest.raises(ValueError, match="has 4 classes, and this AutoAttack needs 10"):
        robustbench.benchmark(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(27, 4)), x, y % 4, eps=EPS
        )


@pytest.mark.parametrize(
    ("behind", "shift", "message"),
    [
        (lambda z: (z, z), 0, "a tuple of 2"),
        (lambda z: z / 0, 0, "image 0 .*NaN or infinite"),
        (lambda z: z, 100, "label 10. but the model has"),
    ],
)
def test_benchmark_looks_at_logits_and_labels(model, images, behind, shift, message):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return behind(model(x))

    x, y = images
    with pytest.raises(ValueError, match=message):
        robustbench.benchmark(Odd(), x, y.to(torch.int16) + shift, eps=EPS)


def test_zoo_names():
    with pytest.raises(ValueError, match="Wong2020Fast"):
        robustbench.load_model("Wong2020")
    with pytest.raises(ValueError, match="cifar10 Linf; "):
        robustbench.load_model("Standard", "Linf", dataset="mnist")


def test_zoo_without_network(tmp_path, monkeypatch):
    from gkp.attacks.robustbench import _module

    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(_module("utils"), "download_gdrive_new", unreachable)
    with pytest.raises(FileNotFoundError, match=r"Wong2020Fast.pt is not there.*connect to the internet"):
        robustbench.load_model("Wong2020Fast", folder=tmp_path)


def test_zoo_loads_weights_that_are_there(tmp_path):
    from gkp.attacks.robustbench import _module

    network = _module("model_zoo").model_dicts
    network = next(v for k, v in network.items() if k.value == "cifar10")
    network = next(v for k, v in network.items() if k.value == "Linf")["Wong2020Fast"]["model"]()
    torch.manual_seed(0)
    torch.nn.init.normal_(network.linear.weight)
    path = tmp_path / "cifar10" / "Linf" / "Wong2020Fast.pt"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    loaded = robustbench.load_model("Wong2020Fast", folder=tmp_path)
    assert not loaded.training
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network.eval()(x))


def test_leaves_no_alias_behind():
    from gkp.attacks.robustbench import _module

    before = sys.modules.get("autoattack")
    _module("eval")
    assert sys.modules.get("autoattack") is before
