"""Planted gradient masking: each kind is named, and networks without it are not accused."""

import pytest
import torch
import torch.nn.functional as F
from attacked_nets import SmallNet
from odd_nets import Odd, images, right_labels

from gkp.attacks import Attack
from gkp.attacks.autoattack import autoattack
from gkp.attacks.outcome import Outcome
from gkp.evaluate import outcome, self_check
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record_parts import Metric

EPS = 8 / 255
ATTACKS = (Attack("fgsm", eps=EPS), Attack("pgd", eps=EPS, step=EPS / 4, iterations=4, restarts=1))
N = 12


def evaluations(model, y=None):
    x = images(N)
    y = right_labels(model, x) if y is None else y
    return [outcome(model, x, y, attack, batch_size=5) for attack in (Attack("none"), *ATTACKS)]


def strong(model, y=None):
    x = images(4)
    y = right_labels(model, x) if y is None else y[:4]
    return autoattack(model, x, y, eps=EPS, version="custom", attacks=("apgd-ce",), batch_size=3)


SHATTERED = {
    "rounded input": Odd(before=lambda x: torch.round(8 * x) / 8),
    "floor": Odd(before=lambda x: (255 * x / 64).floor()),
    "sign": Odd(before=lambda x: torch.sign(x - 0.5)),
    "saturated logits": Odd(behind=lambda z: 1e6 * z),
    "flat logits": Odd(behind=lambda z: (z > z.median(1, keepdim=True).values) + 0 * z),
}


@pytest.mark.parametrize("kind", SHATTERED)
def test_a_gradient_of_exactly_zero_is_told(kind) -> None:
    benign, *attacked = evaluations(SHATTERED[kind])
    assert benign.zero_gradient is None
    told = self_check([benign, *attacked])
    for found in attacked:
        assert found.zero_gradient == int(found.correct.sum()) > 0, "every image that stays right is masked"
        counts = f"{found.zero_gradient} of {N} images"
        assert any(found.name in s and "exactly zero" in s and counts in s for s in told)


def test_autoattack_tells_both_signs_and_its_own_warnings() -> None:
    rounded, noisy = strong(SHATTERED["rounded input"]), strong(RANDOM["noise"], torch.zeros(4).long())
    assert rounded.zero_gradient == int(rounded.correct.sum()) > 0
    assert any("exactly zero" in sentence for sentence in self_check([rounded]))
    assert any("two forward passes" in sentence for sentence in self_check([noisy]))
    assert any("randomized defense" in sentence for sentence in self_check([noisy]))
    probabilities = strong(Odd(behind=lambda z: z.softmax(1)))
    assert any("probability distribution" in sentence for sentence in self_check([probabilities]))
    assert (strong(Odd()).zero_gradient, strong(Odd()).repeatable) == (0, True)


NO_GRADIENT = {
    "argmax": lambda z: F.one_hot(z.argmax(1), 5).float(),
    "detached": lambda z: z.detach(),
    "through NumPy": lambda z: torch.from_numpy(z.detach().numpy()),
    "quantised": lambda z: torch.bucketize(z, torch.linspace(-1, 1, 9)).float(),
}


@pytest.mark.parametrize("kind", [*NO_GRADIENT, "no_grad", "inference_mode"])
def test_a_forward_pass_without_a_gradient_is_refused_by_attacks_alone(kind) -> None:
    model = Odd(behind=NO_GRADIENT.get(kind))
    if kind not in NO_GRADIENT:
        model.forward = getattr(torch, kind)()(model.forward)
    x = images(N)
    y = right_labels(model, x)
    assert outcome(model, x, y, Attack("none")).accuracy == 1
    for attack in ATTACKS:
        with pytest.raises(ValueError, match=r"no gradient of the logits.*square"):
            outcome(model, x, y, attack)
    with pytest.raises(ValueError, match="no gradient of the logits"):
        autoattack(model, x, y, eps=EPS, version="custom", attacks=("apgd-ce",))


RANDOM = {
    "dropout left on": Odd(before=lambda x: F.dropout(x, 0.3, training=True)),
    "noise": Odd(before=lambda x: x + 0.05 * torch.randn_like(x)),
    "random resize": Odd(before=lambda x: torch.roll(x, int(torch.randint(1, 8, ())), 3)),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_layers_are_told(kind) -> None:
    benign, *attacked = evaluations(RANDOM[kind], y=torch.zeros(N, dtype=torch.long))
    told = self_check([benign, *attacked])
    for found in attacked:
        assert not found.repeatable
        assert any(found.name in s and "two forward passes of the same image differ" in s for s in told)
    assert not any("benign: two" in sentence for sentence in told)


def test_an_honest_network_is_not_accused() -> None:
    for model in (SmallNet(classes=5).eval(), Odd()):
        found = evaluations(model)
        assert [o.zero_gradient for o in found] == [None, 0, 0]
        assert all(o.repeatable for o in found)
        assert self_check(found) == []


def test_images_that_the_attack_breaks_are_not_counted() -> None:
    """Flat at the images, steep elsewhere: a random start finds what the first gradient does not show."""

    def flat_at_centre(x):
        return torch.where((x - 0.5).abs() < 1e-3, 0.5, x)

    model, x = Odd(before=flat_at_centre), torch.full((N, 3, 8, 8), 0.5)
    y = right_labels(model, x)
    none = outcome(model, x, y, Attack("fgsm", eps=0.2))
    some = outcome(model, x, y, Attack("pgd", eps=0.2, step=0.05, iterations=8, restarts=3))
    assert (none.zero_gradient, none.accuracy) == (N, 1)
    assert some.zero_gradient == int(some.correct.sum()) < N


def test_records_keep_the_signs_and_are_judged_alike() -> None:
    found = evaluations(SHATTERED["rounded input"])
    found.append(evaluations(RANDOM["noise"], y=torch.zeros(N, dtype=torch.long))[1])
    metrics = [Metric.of(o, Entry(o.attack, N)) for o in found]
    assert self_check(metric.outcome for metric in metrics) == self_check(found)
    assert metrics[1].zero_gradient == found[1].zero_gradient > 0
    assert not {"zero_gradient", "repeatable"} & metrics[0].source.keys()
    assert metrics[-1].source["repeatable"] is False


def test_older_records_say_nothing_of_it() -> None:
    o = Outcome(ATTACKS[0].name, torch.ones(N, dtype=torch.bool), 0.1, ATTACKS[0])
    old = Metric.of(o, Entry(o.attack, N))
    assert not {"zero_gradient", "repeatable", "flags"} & old.source.keys()
    assert self_check([old.outcome]) == []
