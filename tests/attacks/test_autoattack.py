"""AutoAttack against a closed form and against the package itself; kills, resumes and refusals."""

import json
import logging
import sys

import pytest
import torch
from linear_net import EPS, withstands
from torch import nn

from gkp.attacks.autoattack import CLEAN, ROBUST, autoattack

CUSTOM = {"version": "custom", "attacks": ("apgd-ce", "apgd-t")}
FAST = {"version": "custom", "attacks": ("apgd-ce",)}


def test_linear_model_in_closed_form(model, images):
    x, y = images
    found = autoattack(model, x, y, eps=EPS, **CUSTOM)
    expected = withstands(model, x, y, EPS)
    assert 5 < expected.sum() < 22
    assert torch.equal(found.correct, expected)
    assert (found.broken_by[:3] == CLEAN).all()
    assert torch.equal(found.broken_by == ROBUST, expected)
    assert {1} <= set(found.broken_by.tolist()) <= {ROBUST, CLEAN, 1, 2}
    assert found.name == "autoattack_custom_Linf_7.65/255"
    assert (found.n, found.attacks) == (30, CUSTOM["attacks"])
    assert found.attack.kind == "autoattack"
    assert found.attack.eps == EPS


def test_equals_the_package_itself(images):
    """One batch, the ensemble run by pyautoattack with the same seed, on a network that is not linear."""
    from pyautoattack import AutoAttack

    x, _ = images
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 32), nn.Tanh(), nn.Linear(32, 10)).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    attacks = ["apgd-ce", "apgd-dlr", "fab-t"]
    package = AutoAttack(model, norm="Linf", eps=0.02, version="custom", attacks=attacks, seed=5)
    _, predicted = package.run_standard_evaluation(x, y, batch_size=30)
    found = autoattack(model, x, y, eps=0.02, version="custom", attacks=attacks, seed=5)
    assert 0 < found.correct.sum() < 30
    assert torch.equal(found.correct, predicted == y)


def test_standard_version_runs_whole(model, images):
    x, y = images
    expected = withstands(model, x, y, EPS)
    part = torch.cat([expected.nonzero().flatten()[:1], (~expected).nonzero().flatten()[:6]])
    found = autoattack(model, x[part], y[part], eps=EPS)
    assert found.attacks == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert torch.equal(found.correct, expected[part])


def test_fewer_classes_than_targets(images):
    """The package aims at nine other classes; a network with four has three."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 4)).eval()
    with torch.no_grad():
        y = model(images[0]).argmax(1)
    attacks = ("apgd-t", "fab-t")
    found = autoattack(model, images[0], y, eps=0.02, version="custom", attacks=attacks)
    assert 0 < found.correct.sum() < 30


def test_three_classes_are_refused(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
    with pytest.raises(ValueError, match="3 classes.*needs 4"):
        autoattack(model, images[0], torch.zeros(30, dtype=torch.int64), eps=EPS, **CUSTOM)


def test_leaves_the_process_as_it_was(model, images):
    model.train()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    handlers = list(logger.handlers)
    autoattack(model, *images, eps=EPS, version="custom", attacks=["apgd-ce"])
    assert torch.equal(torch.rand(3), expected)
    assert (logger.handlers, logger.propagate, sys.gettrace()) == (handlers, True, trace)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_flags_are_kept_and_not_printed(images, capfd):
    """A model whose logits do not depend on its input has zero gradients, which AutoAttack notices."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 10))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.arange(10.0)
    y = torch.full((30,), 9)
    found = autoattack(model, images[0], y, eps=EPS, version="custom", attacks=["apgd-dlr"])
    assert found.accuracy == 1.0
    assert any("zero gradient" in flag for flag in found.flags)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("norm", "eps"), [("L2", 1.5), ("L1", 12.0)])
def test_radii_above_1_in_other_norms(model, images, norm, eps):
    x, y = (each[:6] for each in images)
    small, large = (
        autoattack(model, x, y, eps=radius, norm=norm, version="custom", attacks=["apgd-ce"])
        for radius in (0.01, eps)
    )
    assert large.correct.sum() < small.correct.sum()
    assert (small.attack, large.attack) == (None, None)
    assert large.name.startswith(f"autoattack_custom_{norm}_")


@pytest.mark.parametrize("eps", [8, 1.5])
def test_grey_levels_are_refused_before_the_first_image(images, eps):
    def never(x):
        raise AssertionError("the network was asked")

    model = nn.Flatten()
    model.forward = never
    with pytest.raises(ValueError, match=f"{eps:g} grey levels are {eps:g}/255"):
        autoattack(model, *images, eps=eps)


# ---- resume --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(batches):
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == batches:
            raise Killed

    return progress


def test_kill_and_resume(model, images, tmp_path):
    path = tmp_path / "state" / "aa.json"
    options = {"eps": EPS, "batch_size": 8, "state_path": path, **CUSTOM}
    with pytest.raises(Killed):
        autoattack(model, *images, **options, progress=killed_after(2))
    assert len(json.loads(path.read_text())["batches"]) == 2
    calls = []
    resumed = autoattack(model, *images, **options, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(24, 30), (30, 30)]
    whole = autoattack(model, *images, **(options | {"state_path": None}))
    assert torch.equal(resumed.broken_by, whole.broken_by)
    assert resumed.flags == whole.flags
    # A finished state answers without attacking anything.
    again = autoattack(model, *images, **options, progress=killed_after(1))
    assert torch.equal(again.broken_by, whole.broken_by)
    assert again.seconds == resumed.seconds
    assert [p.name for p in path.parent.iterdir()] == ["aa.json"]


@pytest.fixture(scope="module")
def finished(model, images, tmp_path_factory):
    """The state of a whole evaluation in batches of 8, and its options."""
    path = tmp_path_factory.mktemp("finished") / "aa.json"
    options = {"eps": EPS, "batch_size": 8, "state_path": path, **FAST}
    autoattack(model, *images, **options)
    return path.read_bytes(), options


@pytest.fixture
def state(finished, tmp_path):
    """A state of its own for each test, and the options it goes with."""
    before, options = finished
    path = tmp_path / "aa.json"
    path.write_bytes(before)
    return path, options | {"state_path": path}


@pytest.mark.parametrize(
    "name", ["eps", "norm", "attacks", "seed", "batch_size", "weights", "images", "labels"]
)
def test_state_of_another_evaluation_is_refused(model, images, state, name):
    path, options = state
    x, y = images
    before = path.read_bytes()
    changes = {"eps": 0.04, "norm": "L2", "attacks": ["apgd-dlr"], "seed": 1, "batch_size": 10}
    if name in changes:
        options[name] = changes[name]
    elif name == "weights":
        model = nn.Sequential(nn.Flatten(), nn.Linear(27, 10))
    elif name == "images":
        x = x.flip(3)
    else:
        y = y.flip(0)
    with pytest.raises(ValueError, match=rf"different evaluation \({name}\): give another state_path"):
        autoattack(model, x, y, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"settings": {}}',
        '{"settings": [], "batches": []}',
        '{"settings": {}, "batches": [{}]}',
    ],
)
def test_damaged_state_is_refused(model, images, tmp_path, content):
    path = tmp_path / "aa.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no state of AutoAttack"):
        autoattack(model, *images, eps=EPS, state_path=path, **CUSTOM)


@pytest.mark.parametrize("change", ["one image more", "batches twice", "a batch too few in between"])
def test_a_state_with_other_numbers_of_images_is_refused(model, images, state, change):
    path, options = state
    written = json.loads(path.read_text())
    first, *others = written["batches"]
    written["batches"] = {
        "one image more": [first | {"broken_by": [*first["broken_by"], -1]}, *others],
        "batches twice": 2 * written["batches"],
        "a batch too few in between": [first, others[-1]],
    }[change]
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="damaged: its batches are not of these images"):
        autoattack(model, *images, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.0}, "eps > 0"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps": 8}, "8 grey levels are 8/255"),
        ({"norm": "linf"}, "'linf'.*Linf, L2, L1"),
        ({"version": "fast"}, "standard, plus, rand, custom"),
        ({"version": "custom"}, 'with version="custom" only'),
        ({"attacks": ["apgd-ce"]}, 'with version="custom" only'),
        ({"version": "custom", "attacks": ["pgd"]}, "no attack pgd"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_errors_name_the_fix(model, images, changes, message):
    with pytest.raises(ValueError, match=message):
        autoattack(model, *images, **({"eps": EPS} | changes))
