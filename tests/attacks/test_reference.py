"""FGSM and PGD give what two independent libraries give: torchattacks and ART."""

import pytest
import torch
from torch import nn

from gkp.attacks import fgsm, pgd


def test_equals_torchattacks(net, batch):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    ours = fgsm(net, x, y, eps=8 / 255)
    theirs = torchattacks.FGSM(net, eps=8 / 255)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    ours = pgd(net, x, y, eps=8 / 255, step=2 / 255, iterations=7)
    theirs = torchattacks.PGD(net, eps=8 / 255, alpha=2 / 255, steps=7, random_start=False)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def art_attacked(net, x, y, name, clip_values, **options):
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=clip_values, device_type="cpu"
    )
    attack = {"fgsm": FastGradientMethod, "pgd": ProjectedGradientDescent}[name]
    if name == "pgd":
        options["verbose"] = False
    generated = attack(classifier, **options).generate(x.numpy(), None if y is None else y.numpy())
    return torch.from_numpy(generated)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("labels", ["true", "predicted"])
def test_fgsm_equals_art(net, batch, labels):
    x, y = batch
    theirs = art_attacked(net, x, y if labels == "true" else None, "fgsm", (0, 1), eps=0.03, eps_step=0.03)
    ours = fgsm(net, x, y, eps=0.03, labels=labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("labels", ["true", "predicted"])
def test_normalized_space_equals_art(net, batch, name, labels):
    """The released set-up: the classifier takes normalised images, clipped to one range for all channels."""
    x, y = batch
    x = x.clone()
    x[:, :, :2], x[:, :, 2:4] = 0.0, 1.0  # so that the clip acts
    mean, std = net.normalize.mean, net.normalize.std
    clip = (float(((0 - mean) / std).min()), float(((1 - mean) / std).max()))

    class Inner(nn.Module):
        def forward(self, z):
            return net(z * std + mean)

    theirs_y = y if labels == "true" else None
    steps = {"eps_step": 0.1, "max_iter": 3} if name == "pgd" else {"eps_step": 0.25}
    theirs = art_attacked(Inner(), net.normalize(x), theirs_y, name, clip, eps=0.25, **steps)
    if name == "fgsm":
        ours = fgsm(net, x, y, eps=0.25, space="normalized", labels=labels)
    else:
        ours = pgd(net, x, y, eps=0.25, step=0.1, iterations=3, space="normalized", labels=labels)
    torch.testing.assert_close(net.normalize(ours), theirs, rtol=0, atol=2e-6)
    assert ours.min() < 0  # the narrower channels leave [0, 1], as documented
    assert ours.max() > 1
