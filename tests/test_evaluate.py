"""Accuracy, intervals, paired tests, packed bits, and the checks that an evaluation makes on itself."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from torch import nn

from gkp.attacks import Attack, fgsm
from gkp.attacks.autoattack import autoattack
from gkp.attacks.outcome import Outcome, pack_bits, unpack_bits
from gkp.evaluate import accuracy, epsilon_curve, outcome, quick, self_check
from gkp.nets.models import Normalize
from gkp.utils.stats import mcnemar, mcnemar_clustered, wilson

PGD = Attack("pgd", eps=8 / 255, step=2 / 255, iterations=10)
BENIGN = Attack("none")
few = settings(max_examples=30)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 4))
    return nn.Sequential(Normalize((0.5,) * 3, (0.25,) * 3), *layers).eval()


@pytest.fixture(scope="module")
def images(model):
    x = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 4  # five clean errors
    return x, y


def seen(attack, right, n=100):
    """An outcome with the first `right` of n images right."""
    return Outcome(attack.name, torch.arange(n) < right, 1.0, attack)


# ---- accuracy ------------------------------------------------------------------------------------


def test_accuracy(model, images):
    x, y = images
    assert accuracy(model, x, y) == 0.9
    assert accuracy(model, x, y, batch_size=7) == 0.9
    assert accuracy(model, x[:5], y[:5]) == 0.0


def test_accuracy_uses_eval_mode_and_restores_training():
    class Mode(nn.Module):
        def forward(self, x):
            right = torch.tensor([0.0, 1.0])
            return (right if not self.training else 1 - right).expand(len(x), 2)

    model = Mode().train()
    assert accuracy(model, torch.rand(3, 1, 2, 2), torch.ones(3, dtype=torch.int64)) == 1.0
    assert model.training


def test_outcome_says_which_images(model, images):
    x, y = images
    calls = []
    attack = Attack("fgsm", eps=0.05)
    found = outcome(model, x, y, attack, batch_size=20, progress=lambda *numbers: calls.append(numbers))
    with torch.no_grad():
        expected = model(fgsm(model, x, y, eps=0.05)).argmax(1) == y
    assert torch.equal(found.correct, expected)
    assert 0 < expected.sum() < 45
    assert calls == [(20, 50), (40, 50), (50, 50)]
    assert (found.name, found.n, found.attack) == (attack.name, 50, attack)
    assert found.accuracy == int(expected.sum()) / 50
    assert found.interval == wilson(int(expected.sum()), 50)
    assert found.seconds > 0


def test_batches_get_different_random_starts():
    """One image twice, in two batches: the starts differ."""
    images = []

    class Flat(nn.Module):
        def forward(self, x):
            if not x.requires_grad:
                images.append(x.clone())
            return torch.stack([0 * x.flatten(1).sum(1), x.flatten(1).sum(1)], 1)

    attack = replace(PGD, restarts=1, step=1e-6, iterations=1)
    outcome(Flat(), torch.full((2, 1, 4, 4), 0.5), torch.tensor([1, 1]), attack, batch_size=1)
    starts = {tuple(x.flatten().tolist()) for x in images if (x - 0.5).abs().max() > 1e-3}
    assert len(starts) == 2


@pytest.mark.parametrize(("images", "labels", "batch_size"), [(0, 0, 5), (3, 2, 5), (3, 3, 0)])
def test_outcome_refuses(model, images, labels, batch_size):
    with pytest.raises(ValueError, match="give as many labels as images"):
        accuracy(
            model, torch.rand(images, 3, 4, 4), torch.zeros(labels, dtype=torch.int64), batch_size=batch_size
        )


@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: x - 1, lambda x: x / 0 * 0])
@pytest.mark.parametrize("attack", [BENIGN, Attack("fgsm", eps=0.05)], ids=["none", "fgsm"])
def test_outcome_refuses_what_are_no_pixels(model, images, change, attack):
    x, y = images
    last = torch.cat([x[:-1], change(x[-1:])])
    with pytest.raises(ValueError, match=r"x leaves \[0, 1\]: give pixels"):
        outcome(model, last, y, attack, batch_size=20)
    with pytest.raises(ValueError, match=r"x leaves \[0, 1\]: give pixels"):
        accuracy(model, last, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, "the model is a function: give an nn.Module"),
        ({"model": nn.Linear(4, 2, device="meta")}, ValueError, "parameters are on the meta device"),
        ({"x": torch.empty(2, 3, 4, 4, device="meta")}, ValueError, "x is on the meta device"),
        ({"attack": "pgd"}, ValueError, "attack='pgd': give a gkp.attacks.Attack"),
    ],
)
def test_what_cannot_be_evaluated_is_named(model, images, change, error, message):
    with pytest.raises(error, match=message):
        outcome(**{"model": model, "x": images[0], "y": images[1], "attack": PGD} | change)


class Named(nn.Sequential):
    @property
    def normalize(self):
        return self[0]


def convolutional():
    """A network with batch norms that have seen images, so that folding changes numbers."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    network = Named(Normalize((0.5,) * 3, (0.25,) * 3), *layers)
    for _ in range(3):
        network(torch.rand(20, 3, 4, 4))
    return network


@pytest.mark.parametrize("space", ["pixel", "normalized"])
def test_folding_changes_neither_outcomes_nor_the_network(images, space):
    network, (x, y) = convolutional(), images
    before = copy.deepcopy(network.state_dict())
    for attack in (BENIGN, Attack("fgsm", eps=0.03, space=space), replace(PGD, space=space, restarts=1)):
        own, folded = (outcome(network, x, y, attack, fold=fold).correct for fold in (False, True))
        assert torch.equal(own, folded)
    assert network.training
    assert isinstance(network[2], nn.BatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_quick_network_has_no_batch_norm_left(images):
    network = convolutional()
    copied = quick(network, images[0])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert copied.normalize.std.equal(network.normalize.std)
    with torch.no_grad():
        torch.testing.assert_close(copied(images[0]), network.eval()(images[0]))


def test_a_network_that_cannot_be_copied_is_evaluated_itself(images):
    network = convolutional()
    network.lock = threading.Lock()
    assert quick(network, images[0]) is network
    x, y = images
    own, other = (outcome(network, x, y, PGD, fold=fold).correct for fold in (False, True))
    assert torch.equal(own, other)


def test_epsilon_curve_scales_the_step(model, images):
    template = Attack("pgd", eps=0.02, step=0.005, iterations=5)
    curve = epsilon_curve(model, *images, (0.0, 0.02, 0.08), attack=template)
    assert [o.attack.eps for o in curve] == [0.0, 0.02, 0.08]
    assert [o.attack.step for o in curve] == [0.005, 0.005, 0.02]
    assert curve[0].accuracy == 0.9
    assert curve[0].accuracy > curve[1].accuracy > curve[2].accuracy
    assert self_check([outcome(model, *images, BENIGN), *curve]) == []
    assert len(epsilon_curve(model, *images, (0.0, 0.1), attack=Attack("fgsm", eps=0.1))) == 2


# ---- statistics ----------------------------------------------------------------------------------


@few
@given(st.integers(1, 10_000), st.data())
def test_wilson_equals_statsmodels(n, data):
    from statsmodels.stats.proportion import proportion_confint

    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    np.testing.assert_allclose((low, high), proportion_confint(successes, n, method="wilson"), atol=1e-9)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_of_a_published_example():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    np.testing.assert_allclose(wilson(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(wilson(0, 20), (0.0, 0.1611), atol=5e-5)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


@few
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_the_binomial_test(pairs):
    from scipy.stats import binomtest

    a, b = (torch.tensor(column) for column in zip(*pairs, strict=True))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_mcnemar_refuses():
    with pytest.raises(ValueError, match="same images"):
        mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))


@given(st.lists(st.booleans(), max_size=70))
def test_bits_survive_packing(bits):
    correct = torch.tensor(bits, dtype=torch.bool)
    assert torch.equal(unpack_bits(pack_bits(correct), len(bits)), correct)


def test_bits_golden_and_damage():
    assert pack_bits(torch.tensor([True] + [False] * 7 + [True])) == "gIA="
    for text, n in (("gIA=", 8), ("gIA=", 17), ("gIA", 9), ("g*A=", 9), ("gP8=", 9)):
        with pytest.raises(ValueError, match="damaged|pack_bits"):
            unpack_bits(text, n)


# ---- self-check ----------------------------------------------------------------------------------


def test_sound_evaluation_passes():
    fgsm_4, fgsm_8 = Attack("fgsm", eps=4 / 255), Attack("fgsm", eps=8 / 255)
    assert self_check([]) == []
    assert (
        self_check(
            [
                seen(BENIGN, 90),
                seen(replace(fgsm_4, eps=0.0), 90),
                seen(fgsm_4, 50),
                seen(fgsm_8, 40),
                seen(PGD, 35),
                seen(replace(PGD, iterations=20), 34),
                seen(replace(PGD, iterations=50, step=1 / 255, restarts=1), 34),
                seen(Attack("autoattack", eps=8 / 255), 30),
                # Another start, or another eps with another start, is no weaker attack than those above.
                seen(replace(PGD, iterations=60, start="random"), 36),
                seen(replace(PGD, eps=9 / 255, step=PGD.step * 9 / 8, start="random"), 38),
                # A different space or weaker labels at the same number compare with nothing above.
                seen(replace(fgsm_8, space="normalized"), 80),
                seen(replace(fgsm_8, labels="predicted"), 60),
            ]
        )
        == []
    )


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        # step times iterations
        ([seen(replace(PGD, iterations=3), 50)], ["pgd3", "0.75 eps", "cannot reach"]),
        # eps = 0
        ([seen(BENIGN, 90), seen(Attack("fgsm", eps=0.0), 88)], ["fgsm_pixel_0_true", "2 of 100", "eps = 0"]),
        # no attack beats none
        ([seen(BENIGN, 90), seen(PGD, 93)], ["pgd10", "3 of 100", "benign"]),
        # a larger eps, also where the step grows alike
        (
            [seen(Attack("fgsm", eps=4 / 255), 20), seen(Attack("fgsm", eps=8 / 255), 25)],
            ["fgsm_pixel_8/255", "5 of 100", "fgsm_pixel_4/255", "eps is larger"],
        ),
        (
            [seen(PGD, 20), seen(replace(PGD, eps=16 / 255, step=4 / 255), 21)],
            ["pgd10_pixel_16/255", "1 of 100", "eps is larger"],
        ),
        # more iterations, more restarts
        ([seen(PGD, 20), seen(replace(PGD, iterations=11), 21)], ["pgd11", "fewer iterations"]),
        ([seen(PGD, 20), seen(replace(PGD, restarts=2), 21)], ["pgd10r2", "fewer iterations or restarts"]),
        # PGD against FGSM, with the labels that make FGSM weaker too; AutoAttack against PGD
        ([seen(Attack("fgsm", eps=8 / 255), 20), seen(PGD, 22)], ["pgd10", "2 of 100", "weaker attack"]),
        (
            [seen(Attack("fgsm", eps=8 / 255, labels="predicted"), 20), seen(PGD, 22)],
            ["pgd10", "fgsm_pixel_8/255_predicted"],
        ),
        ([seen(PGD, 20), seen(Attack("autoattack", eps=8 / 255), 22)], ["autoattack", "weaker attack"]),
    ],
)
def test_each_violation_is_one_sentence(outcomes, words):
    for order in (outcomes, outcomes[::-1]):
        (sentence,) = self_check(order)
        for word in words:
            assert word in sentence


def test_predicted_labels_repair_errors():
    attack = Attack("fgsm", eps=0.01, labels="predicted")
    repaired = Outcome(attack.name, torch.tensor([False, False, True, True]), 1.0, attack)
    benign = Outcome("benign", torch.tensor([True, True, True, False]), 1.0, BENIGN)
    (sentence,) = self_check([benign, repaired])
    assert "1 of 4 images are wrong when clean and right when attacked" in sentence


def test_starts_do_not_depend_on_what_became_of_earlier_batches():
    """A first batch that is wrong already takes its random starts from the others, and so it must."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x = torch.rand(400, 3, 2, 2)
    with torch.no_grad():
        right = model(x).argmax(1)
    wrong = torch.cat([(right[:50] + 1) % 4, right[50:]])
    attack = Attack("pgd", eps=0.06, step=0.06, iterations=1, restarts=3, start="random")
    after, alone = (outcome(model, x, y, attack, batch_size=50, fold=False) for y in (wrong, right))
    assert not after.correct[:50].any()
    assert alone.correct[:50].any()
    assert 0 < alone.correct[50:].sum() < 350
    assert torch.equal(after.correct[50:], alone.correct[50:])


def test_every_eps_of_a_curve_is_checked_before_the_first(model, images):
    calls = []
    with pytest.raises(ValueError, match="2 grey levels are 2/255"):
        epsilon_curve(model, *images, [0.01, 2], attack=PGD, progress=lambda *numbers: calls.append(numbers))
    assert calls == []


def test_different_numbers_of_images_compare_on_the_common_ones():
    fgsm_8 = Attack("fgsm", eps=8 / 255)
    assert self_check([seen(fgsm_8, 60, n=100), seen(PGD, 50, n=50)]) == []  # 50 and 50 of the first 50
    (sentence,) = self_check([seen(fgsm_8, 40, n=100), seen(PGD, 50, n=50)])
    assert "10 of 50" in sentence


def test_only_the_worst_pair_of_a_curve_is_told():
    curve = [seen(Attack("fgsm", eps=e / 255), right) for e, right in ((1, 30), (2, 20), (8, 25))]
    (sentence,) = self_check(curve)
    assert "5 of 100" in sentence
    assert "fgsm_pixel_2/255" in sentence


def test_live_evaluation_of_a_real_model_is_clean(model, images):
    before = copy.deepcopy(model.state_dict())
    attacks = [BENIGN, *(Attack("fgsm", eps=e) for e in (0.0, 0.02, 0.05)), replace(PGD, eps=0.05, step=0.02)]
    outcomes = [outcome(model, *images, attack) for attack in attacks]
    assert self_check(outcomes) == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_clustered_mcnemar_of_one_network_is_mcnemars_and_copies_add_nothing(pairs):
    a, b = torch.tensor(pairs).T
    p = mcnemar_clustered(a[None], b[None])
    table = [[0, int((a & ~b).sum())], [int((~a & b).sum()), 0]]
    assert mcnemar(a, b) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    if (a ^ b).any():
        assert p == pytest.approx(statsmodels_mcnemar(table, exact=False, correction=False).pvalue)
    else:
        assert p == 1
    assert mcnemar_clustered(a.expand(3, -1), b.expand(3, -1)) == pytest.approx(p)


def test_clustered_mcnemar_keeps_its_level():
    """Two methods alike, three networks each, whose answers hang together by image."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        share = random.random(200)
        a, b = (torch.from_numpy(random.random((3, 200)) < share) for _ in range(2))
        hits += mcnemar_clustered(a, b) < 0.05
    assert 30 < hits < 75
    with pytest.raises(ValueError, match=r"\(S, N\)"):
        mcnemar_clustered(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))


def test_integer_images_are_refused_without_an_attack_too() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8.*255"):
        outcome(torch.nn.Flatten(), images, torch.zeros(2, dtype=torch.long), Attack("none"))


def test_attacks_of_ones_own_choice_need_not_be_the_strongest(model, images):
    chosen = autoattack(model, *images, eps=1 / 255, version="custom", attacks=("square",))
    chosen = replace(chosen, correct=torch.ones_like(chosen.correct))
    pgd = Attack("pgd", eps=1 / 255, step=0.25 / 255, iterations=10)
    assert self_check([chosen, seen(pgd, 0, n=chosen.n)]) == []
    standard = replace(chosen, attacks=("apgd-ce", "apgd-t", "fab-t", "square"))
    (sentence,) = self_check([standard, seen(pgd, 0, n=chosen.n)])
    assert "images more right than pgd10" in sentence


@pytest.mark.parametrize("size", [10.0, "10", True, 0])
def test_a_batch_size_is_a_whole_number(model, images, size):
    with pytest.raises(ValueError, match="batch_size="):
        accuracy(model, *images, batch_size=size)
    with pytest.raises(ValueError, match="batch_size="):
        autoattack(model, *images, eps=1 / 255, batch_size=size)
