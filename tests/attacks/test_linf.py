"""FGSM and PGD against closed forms and their own rules."""

import copy

import pytest
import torch
from attacked_nets import LinearNet, SmallNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gkp.attacks import Attack, ascent, fgsm, pgd
from gkp.attacks.ascent import Trace, uniform
from gkp.nets.models import IMAGENET_MEAN, IMAGENET_STD, Normalize

few = settings(max_examples=20)
SPACES = st.sampled_from(["pixel", "normalized"])


# ---- closed form ---------------------------------------------------------------------------------


@few
@given(st.integers(0, 1000), st.floats(0.001, 0.2))
def test_linear_model_optimum(seed, eps):
    """On a linear model the worst margin inside the box is margin - eps * ||w||_1 (no pixel clipped)."""
    generator = torch.Generator().manual_seed(seed)
    model = LinearNet(torch.randn(27, generator=generator), 0.1)
    x = torch.rand(4, 3, 3, 3, generator=generator) * 0.5 + 0.25
    y = torch.zeros(4, dtype=torch.int64)
    worst = model.margin(x) - eps * model.weight.abs().sum()
    attacked = {
        "fgsm": fgsm(model, x, y, eps=eps),
        "pgd": pgd(model, x, y, eps=eps, step=eps / 4, iterations=4),
        "pgd, restarts": pgd(model, x, y, eps=eps, step=eps / 2, iterations=4, restarts=2),
    }
    for name, found in attacked.items():
        torch.testing.assert_close(model.margin(found), worst, rtol=0, atol=1e-4, msg=name)


def test_normalized_linear_optimum():
    """In normalised units the radius of a channel is eps * std in pixels."""
    model = LinearNet(torch.randn(27, generator=torch.Generator().manual_seed(0)), 0.0)
    model.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    x, y = torch.full((1, 3, 3, 3), 0.5), torch.zeros(1, dtype=torch.int64)
    radius = torch.tensor(IMAGENET_STD).repeat_interleave(9) * 0.1
    worst = model.margin(x) - (radius * model.weight.abs()).sum()
    torch.testing.assert_close(model.margin(fgsm(model, x, y, eps=0.1, space="normalized")), worst)


def test_the_loss_in_float64_finds_gradients_that_float32_rounds_to_zero():
    """Where the right class leads by 30, float32's softmax is exactly 1 and its gradient exactly 0."""
    weight = torch.zeros(2, 12)
    weight[0] = 5.0
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    model[1].weight.data = weight
    x, y = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    eps = 0.1
    assert torch.equal(fgsm(model, x, y, eps=eps), x)
    torch.testing.assert_close(fgsm(model, x, y, eps=eps, loss="float64"), x - eps)
    exact = Attack("fgsm", eps=eps, loss="float64")
    torch.testing.assert_close(exact.perturb(model, x, y), x - eps)
    assert exact.name == "fgsm_pixel_25.5/255_true_loss64"
    with pytest.raises(ValueError, match="loss='float64'"):
        Attack("pgd", eps=eps, step=eps, loss="float64")


def test_a_random_start_takes_its_gradient_away_from_the_image():
    """The start at the image sits where the loss is flat; from anywhere else in the box a step of 2 eps
    arrives at its border."""
    x, y, eps = torch.full((8, 1, 1, 1), 0.5), torch.zeros(8, dtype=torch.long), 0.1

    class Valley(nn.Module):
        def forward(self, x):
            away = (x - 0.5).square().flatten(1)
            return torch.cat([-away, away], 1)

    options = {"eps": eps, "step": 2 * eps, "iterations": 1}
    assert torch.equal(pgd(Valley(), x, y, **options), x)
    generator = torch.Generator().manual_seed(0)
    found = pgd(Valley(), x, y, start="random", generator=generator, **options)
    torch.testing.assert_close((found - x).abs(), torch.full_like(x, eps))
    assert 0 < (found > x).sum() < len(x)  # two sides, as the starts fall
    described = Attack("pgd", start="random", **options)
    assert torch.equal(described.perturb(Valley(), x, y), found)


@pytest.mark.parametrize("space", ["pixel", "normalized"])
def test_random_starts_fill_the_box_evenly(space):
    """With a step of nothing they are where they fell: in each tenth of the box about as often."""
    model, eps = SmallNet().eval(), 0.1
    x, y = torch.full((128, 3, 8, 8), 0.5), torch.zeros(128, dtype=torch.long)
    radius = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * eps if space == "normalized" else eps
    options = {"eps": eps, "step": 1e-9, "iterations": 1, "space": space}
    found = pgd(model, x, y, start="random", generator=torch.Generator().manual_seed(0), **options)
    places = ((found - x) / radius).flatten()
    assert float(places.abs().max()) <= 1 + 1e-5
    counts = torch.histc(places, 10, -1, 1)
    torch.testing.assert_close(counts / counts.mean(), torch.ones(10), rtol=0, atol=0.1)


# ---- properties ----------------------------------------------------------------------------------


@few
@given(st.integers(0, 100), st.floats(0, 0.3), st.integers(1, 3), st.integers(0, 2))
def test_inside_the_box(seed, eps, iterations, restarts):
    net, generator = SmallNet(seed), torch.Generator().manual_seed(seed)
    x = torch.rand(3, 3, 8, 8, generator=generator).mul(1.5).sub(0.25).clamp(0, 1)
    y = torch.randint(10, (3,), generator=generator)
    found = pgd(net, x, y, eps=eps, step=0.1, iterations=iterations, restarts=restarts, generator=generator)
    assert (found - x).abs().max() <= eps + 1e-7
    assert found.min() >= 0
    assert found.max() <= 1


@few
@given(st.integers(0, 100), st.floats(0, 2))
def test_inside_the_normalized_box(seed, eps):
    net, generator = SmallNet(seed), torch.Generator().manual_seed(seed)
    x, y = torch.rand(3, 3, 8, 8, generator=generator), torch.randint(10, (3,), generator=generator)
    found = pgd(
        net, x, y, eps=eps, step=0.5, iterations=2, restarts=1, space="normalized", generator=generator
    )
    mean, std = net.normalize.mean, net.normalize.std
    before, after = net.normalize(x), net.normalize(found)
    assert (after - before).abs().max() <= eps + 1e-5
    assert after.min() >= ((0 - mean) / std).min() - 1e-5
    assert after.max() <= ((1 - mean) / std).max() + 1e-5


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_black_and_white_images_stay_in_the_normalized_box(end):
    """A step of any length ends on the smallest or the largest value that a pixel of any channel has."""
    net, x = SmallNet(0).eval(), torch.full((2, 3, 8, 8), end)
    after = net.normalize(fgsm(net, x, torch.tensor([0, 1]), eps=9, space="normalized"))
    ends = net.normalize(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)]))
    torch.testing.assert_close(after.min(), ends.min(), rtol=0, atol=1e-5)
    torch.testing.assert_close(after.max(), ends.max(), rtol=0, atol=1e-5)


def test_images_that_want_a_gradient_give_attacks_that_do_not(net, batch):
    x, y = batch
    x.requires_grad_()
    assert not fgsm(net, x, y, eps=0.1).requires_grad
    assert not pgd(net, x, y, eps=0.1, step=0.1, iterations=2, restarts=1).requires_grad
    assert x.grad is None


@few
@given(st.integers(0, 100), SPACES)
def test_eps_zero_is_the_identity(seed, space):
    net, generator = SmallNet(seed), torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 3, 8, 8, generator=generator).round(decimals=1), torch.tensor([0, 1])
    assert torch.equal(fgsm(net, x, y, eps=0, space=space), x)
    assert torch.equal(pgd(net, x, y, eps=0, step=0.1, iterations=2, restarts=1, space=space), x)


@few
@given(st.integers(0, 100), st.floats(0.001, 1), SPACES)
def test_one_full_step_of_pgd_is_fgsm(seed, eps, space):
    net, generator = SmallNet(seed), torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 3, 8, 8, generator=generator), torch.tensor([0, 1])
    assert torch.equal(
        pgd(net, x, y, eps=eps, step=eps, iterations=1, space=space), fgsm(net, x, y, eps=eps, space=space)
    )


@few
@given(st.integers(0, 50))
def test_restarts_never_help_the_defender(seed):
    """With the same generator, R + 1 restarts see all that R saw: every image is hurt at least as much."""
    net = SmallNet(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(12, 3, 8, 8, generator=generator)
    y = net(x).argmax(1)
    wrong_before, loss_before = torch.zeros(12, dtype=torch.bool), torch.zeros(12)
    for restarts in range(4):
        found = pgd(
            net, x, y, eps=0.02, step=0.02, iterations=2, restarts=restarts,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        with torch.no_grad():
            logits = net(found)
        wrong, loss = logits.argmax(1) != y, nn.functional.cross_entropy(logits, y, reduction="none")
        assert not (wrong_before & ~wrong).any()
        assert (loss >= loss_before - 1e-6)[wrong == wrong_before].all()
        wrong_before, loss_before = wrong, loss


@few
@given(st.integers(0, 50), SPACES)
def test_sparing_wrong_images_breaks_the_same_ones(seed, space):
    """The same draws, so that the same images end wrong; those that stay right are the same."""
    net = SmallNet(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(12, 3, 8, 8, generator=generator)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10
    options = {"eps": 0.02, "step": 0.01, "iterations": 3, "restarts": 3, "space": space}
    whole, spared = (
        pgd(net, x, y, **options, spare_wrong=spare, generator=torch.Generator().manual_seed(seed))
        for spare in (False, True)
    )
    with torch.no_grad():
        right, same = (net(found).argmax(1) == y for found in (whole, spared))
    assert torch.equal(right, same)
    torch.testing.assert_close(spared[right], whole[right], rtol=0, atol=1e-6)


def test_wrong_images_are_seen_no_more():
    """Two of three images are wrong at once: a restart sees the third alone, and none when there is none."""
    sizes = []

    class Counting(LinearNet):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    model, x = Counting(torch.ones(27), 0.0), torch.full((3, 3, 3, 3), 0.5)
    options = {"eps": 0.01, "step": 0.01, "iterations": 1, "restarts": 2, "spare_wrong": True}
    right = int(model(x).argmax(1)[0])
    sizes.clear()
    pgd(model, x, torch.tensor([right, 1 - right, 1 - right]), **options)
    assert sizes == [3, 3, 1, 1, 1, 1]
    sizes.clear()
    pgd(model, x, torch.full((3,), 1 - right), **options)
    assert sizes == [3, 3]


def test_numbers_that_are_not_finite_are_named_by_their_place_in_the_batch():
    """The restart sees image 2 alone and meets a NaN there."""

    class Broken(nn.Module):
        def forward(self, x):
            z = x.flatten(1).sum(1)
            return torch.stack([0 * z, z if len(x) == 3 else z * float("nan")], 1)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="image 2 "):
        pgd(Broken(), x, y, eps=0.01, step=0.01, iterations=1, restarts=1, spare_wrong=True)


def test_misclassification_outranks_loss():
    """A start that is wrong is kept against random starts that are right with a higher loss."""

    class Flat(nn.Module):
        """Label 0 is right with loss 1.09 below x = 0.5, and wrong with loss 0.70 from there on."""

        def forward(self, x):
            right, wrong = torch.tensor([1.0, 0.99, 0.99]), torch.tensor([1.0, 1.01, -9.0])
            return torch.where(x.flatten(1) < 0.5, right, wrong) + 0 * x.flatten(1)

    found = pgd(
        Flat(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), eps=0.1, step=0.01, iterations=1,
        restarts=10, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.item() >= 0.5


def test_fixed_generator_fixes_the_result(net, batch):
    options = {"eps": 0.1, "step": 1e-4, "iterations": 1, "restarts": 2}
    a, b, c = (
        pgd(net, *batch, **options, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("labels", ["true", "predicted"])
@pytest.mark.parametrize("start", ["image", "random"])
def test_a_batch_in_parts_is_the_batch(start, labels, monkeypatch):
    """Same draws, same images, same gradients noted, and places in messages that are those of the batch."""
    model, x, y = SmallNet(), torch.rand(23, 3, 8, 8), torch.arange(23) % 10
    options = {"eps": 0.05, "step": 0.02, "iterations": 3, "restarts": 2, "start": start, "labels": labels}
    found = []
    for at_once in (100, 5, 1):
        monkeypatch.setattr(ascent, "AT_ONCE", at_once)
        trace, draws = Trace(), torch.Generator().manual_seed(0)
        images = pgd(model, x, y, **options, generator=draws, trace=trace, spare_wrong=True)
        found.append((images, trace.zero_gradient, torch.stack(trace.gradients)))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=0, atol=1e-6)


def test_what_is_not_finite_in_a_part_is_named_by_its_place_in_the_batch(monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            z = x.flatten(1).sum(1)
            return torch.stack([z, -z / (x[:, 0, 0, 0] - 0.25)], 1)

    monkeypatch.setattr(ascent, "AT_ONCE", 4)
    x = torch.full((9, 1, 2, 2), 0.5)
    x[6] = 0.25
    with pytest.raises(ValueError, match="image 6 "):
        fgsm(Broken(), x, torch.zeros(9, dtype=torch.int64), eps=0.1)


def test_channels_last_gives_the_same(net, batch):
    x, y = batch
    found = fgsm(net, x.contiguous(memory_format=torch.channels_last), y, eps=0.05)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, fgsm(net, x, y, eps=0.05), rtol=0, atol=1e-6)


# ---- the model is left alone ---------------------------------------------------------------------


def test_model_state_is_restored(batch):
    model = SmallNet().train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():  # an attack needs gradients even where its caller has none
        found = pgd(model, *batch, eps=0.1, step=0.1, iterations=2)
    assert not found.requires_grad
    assert [m.training for m in (model, model.conv, model.norm)] == [True, True, False]
    assert [p.requires_grad for p in model.conv.parameters()] == [True, False]
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_model_state_is_restored_after_an_error(batch):
    model = SmallNet().train()
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 5\): give images of the channels"):
        fgsm(model, torch.rand(2, 3, 5, 5), torch.tensor([0, 1]), eps=0.1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_attack_runs_in_eval_mode(batch):
    """Batch normalisation in training mode would make images depend on each other."""
    x, y = batch
    model = SmallNet().train()
    together = fgsm(model, x, y, eps=0.05)
    alone = torch.cat([fgsm(model, x[i : i + 1], y[i : i + 1], eps=0.05) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.1}, "eps=-0.1"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"eps": 8}, "8 grey levels are 8/255"),
        ({"step": 0}, "step=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"iterations": 2.5}, "iterations=2.5"),
        ({"iterations": True}, "iterations=True"),
        ({"restarts": -1}, "restarts=-1"),
        ({"restarts": 1.5}, "restarts=1.5"),
        ({"space": "pixels"}, "'pixel', 'normalized'"),
        ({"labels": "guessed"}, "'true', 'predicted'"),
        ({"x": torch.rand(2, 3, 8, 8) + 0.5}, r"leaves \[0, 1\]"),
        ({"x": torch.full((2, 3, 8, 8), float("nan"))}, r"leaves \[0, 1\]"),
        ({"x": torch.rand(2, 3, 8, 8).double()}, "float32"),
        ({"x": torch.rand(3, 8, 8)}, r"\(N, C, H, W\)"),
        ({"y": torch.tensor([0])}, "one integer label per image"),
        ({"y": torch.tensor([0.0, 1.0])}, "one integer label per image"),
    ],
)
def test_errors_name_the_fix(changes, message):
    arguments = {
        "x": torch.rand(2, 3, 8, 8), "y": torch.tensor([0, 1]), "eps": 0.1, "step": 0.1, "iterations": 1
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=message):
        pgd(SmallNet(), **arguments)
    if not {"step", "iterations", "restarts"} & set(changes):
        del arguments["step"], arguments["iterations"]
        with pytest.raises(ValueError, match=message):
            fgsm(SmallNet(), **arguments)


def test_normalized_space_needs_normalize():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(ValueError, match="model.normalize"):
        fgsm(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), eps=0.1, space="normalized")


# ---- nothing drawn, nothing waited for ------------------------------------------------------------


@pytest.mark.parametrize("labels", ["true", "predicted"])
def test_starts_that_are_given_are_those_that_would_be_drawn(net, batch, labels):
    attack = Attack("pgd", eps=8 / 255, step=3 / 255, iterations=2, restarts=2, start="random", labels=labels)
    x, y = batch
    generator, trace = attack.generator(), Trace(deferred=True)
    draws = [uniform(x, generator) for _ in range(attack.draws)]
    found = attack.perturb(net, x, y, generator=iter(draws), trace=trace)
    assert len(draws) == 3
    assert torch.equal(found, attack.perturb(net, x, y))
    assert trace.finite()
    others = iter([-draw for draw in draws])
    assert not torch.equal(found, attack.perturb(net, x, y, generator=others))


def test_a_deferred_trace_keeps_for_later_what_would_be_refused(net, batch):
    x, y = batch
    broken = copy.deepcopy(net)
    next(broken.parameters()).data.fill_(torch.nan)
    for attack in (Attack("fgsm", eps=0.01), Attack("pgd", eps=0.01, step=0.01)):
        trace = Trace(deferred=True)
        attack.perturb(broken, x, y, trace=trace)
        assert not trace.finite()
        with pytest.raises(ValueError, match="NaN"):
            attack.perturb(broken, x, y)
