"""An `Attack` describes a call: its name, its JSON, what it runs and what it refuses."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from attacked_nets import SmallNet

from gkp.attacks import Attack, fgsm, pgd


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Attack("none"), "benign"),
        (Attack("fgsm", eps=0.01, space="normalized", labels="predicted"), "fgsm_norm_0.01_predicted"),
        (Attack("fgsm", eps=0.1, space="normalized"), "fgsm_norm_0.1_true"),
        (Attack("fgsm", eps=0.5 / 255), "fgsm_pixel_0.5/255_true"),
        (Attack("fgsm", eps=8 / 255), "fgsm_pixel_8/255_true"),
        (Attack("fgsm", eps=0.0), "fgsm_pixel_0_true"),
        (Attack("fgsm", eps=1 / 3000), "fgsm_pixel_0.085/255_true"),
        (Attack("fgsm", eps=1 / 7000), "fgsm_pixel_0.0001428571429_true"),
        (
            Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3, space="normalized"),
            "pgd3_norm_8/255_step2/255_true",
        ),
        (
            Attack("pgd", eps=0.5 / 255, step=0.125 / 255, iterations=50, restarts=1),
            "pgd50r1_pixel_0.5/255_step0.125/255_true",
        ),
        (
            Attack("pgd", eps=1 / 255, step=1 / 255, iterations=2, restarts=1, seed=7),
            "pgd2r1_pixel_1/255_step1/255_true_seed7",
        ),
        (
            Attack("pgd", eps=8 / 255, step=10 / 255, start="random", seed=7),
            "pgd1_pixel_8/255_step10/255_true_randomstart_seed7",
        ),
        (Attack("autoattack", eps=0.5 / 255), "autoattack_pixel_0.5/255_true"),
        (Attack("autoattack", eps=0.5 / 255, seed=1), "autoattack_pixel_0.5/255_true_seed1"),
        (Attack("fgsm", eps=0.5 / 255, seed=1), "fgsm_pixel_0.5/255_true"),
    ],
)
def test_attack_names_and_json(attack, name):
    assert attack.name == name
    assert Attack(**json.loads(json.dumps(asdict(attack)))) == attack


def test_attack_calls_what_it_describes(net, batch):
    x, y = batch
    assert Attack("none").perturb(net, x, y) is x
    attack = Attack("fgsm", eps=0.2, space="normalized", labels="predicted")
    assert torch.equal(
        attack.perturb(net, x, y), fgsm(net, x, y, eps=0.2, space="normalized", labels="predicted")
    )
    options = {"eps": 0.2, "step": 0.1, "iterations": 2, "restarts": 1, "space": "normalized"}
    attack = Attack("pgd", labels="predicted", seed=5, **options)
    expected = pgd(net, x, y, labels="predicted", generator=torch.Generator().manual_seed(5), **options)
    assert torch.equal(attack.perturb(net, x, y), expected)
    assert torch.equal(attack.perturb(net, x, y), expected)


def test_attack_refuses_nonsense():
    for arguments in ({"kind": "cw"}, {"kind": "fgsm", "eps": -1}, {"kind": "pgd", "eps": 1, "step": 0}):
        with pytest.raises(ValueError, match="choose|give"):
            Attack(**arguments)
    for arguments in ({"kind": "fgsm", "eps": 1}, {"kind": "pgd", "eps": 1, "step": 1.0}):
        with pytest.raises(ValueError, match="start='middle'|start='random'"):
            Attack(**arguments, start="random" if arguments["kind"] == "fgsm" else "middle")
    with pytest.raises(ValueError, match="gkp.attacks.autoattack"):
        Attack("autoattack", eps=0.1).perturb(SmallNet(), torch.rand(1, 3, 8, 8), torch.tensor([0]))


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "autoattack"])
def test_an_attack_needs_a_radius(kind):
    with pytest.raises(ValueError, match=f'"{kind}" without a radius: give eps='):
        Attack(kind, **{"step": 0.01} if kind == "pgd" else {})
    assert Attack("none").eps == Attack("highpass", theta=4.0).eps == 0


@pytest.mark.parametrize("kind", ["none", "fgsm", "autoattack"])
@pytest.mark.parametrize(("name", "value"), [("step", 0.01), ("iterations", 10), ("restarts", 5)])
def test_steps_belong_to_pgd(kind, name, value):
    with pytest.raises(ValueError, match=f'are for "pgd": leave them out of "{kind}"'):
        Attack(kind, eps=0.1, **{name: value})


@pytest.mark.parametrize("name", ["eps", "step", "seed"])
@pytest.mark.parametrize("value", ["8/255", None, torch.tensor(0.1)])
def test_what_is_no_number_is_refused_before_anything_runs(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*: give"):
        Attack("pgd", **{"eps": 0.1, "step": 0.1, name: value})


def test_numbers_of_numpy_are_numbers():
    attack = Attack(
        "pgd", eps=np.float64(0.1), step=np.float64(0.05), iterations=np.int64(3), seed=np.int64(1)
    )
    assert attack == Attack("pgd", eps=0.1, step=0.05, iterations=3, seed=1)
    assert json.loads(json.dumps(asdict(attack))) == asdict(attack)


@pytest.mark.parametrize(("name", "value"), [("iterations", 2.5), ("restarts", 1.5)])
def test_counts_of_pgd_are_whole(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Attack("pgd", eps=0.1, step=0.1, **{name: value})


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "autoattack"])
def test_grey_levels_are_not_taken_for_pixels(kind) -> None:
    step = {"step": 2} if kind == "pgd" else {}
    with pytest.raises(ValueError, match=r"8 grey levels are 8/255"):
        Attack(kind, eps=8, **step)
    assert Attack(kind, eps=8, space="normalized", **step).eps == 8
