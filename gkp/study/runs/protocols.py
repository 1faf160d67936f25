"""What a network is attacked with: the paper's protocol, a sound one, the audit's, AutoAttack.

Attacks can be added to a finished run from its saved weights, so that suites that share runs and differ in
their protocol share records: each tops them up and shows its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gkp.attacks import Attack

Protocol = tuple["Entry", ...]
CURVE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # eps in 1/255
THETAS = (0.3, 0.5, 0.7)  # cut-offs of the paper's Table 1
SMALL = (0.5, 1.0)  # eps in 1/255 at which undefended networks still differ
LARGE = (2.0, 4.0, 8.0)  # eps in 1/255 up to that of adversarial training
AUTOATTACK_PASSES = 1300  # forward and backward per image: 2,000 at 0.5/255, 650 at 1/255, on two ResNet-20


# What the paper chooses checkpoints by, besides clean accuracy: its Best (a) and Best (b).
SELECTION = {
    f"fgsm-{eps:g}": Attack("fgsm", eps=eps, space="normalized", labels="predicted") for eps in (0.01, 0.1)
}


@dataclass(frozen=True)
class Entry:
    """One attack of a protocol, on the first `n` test images (None: on all of them).

    rules: the checkpoint rules whose weights it is for; None for those of all rules.
    """

    attack: Attack
    n: int | None = None
    rules: tuple[str, ...] | None = None

    def is_for(self, rule: str) -> bool:
        return self.rules is None or rule in self.rules

    @property
    def passes(self) -> float:
        """Forward and backward passes per image, roughly; a forward pass alone counts a third."""
        if self.attack.kind == "autoattack":
            return AUTOATTACK_PASSES
        steps = {"none": 0, "highpass": 0, "fgsm": 1}.get(self.attack.kind, self.attack.iterations)
        return steps * (1 + self.attack.restarts) + 1 / 3


def released() -> Protocol:
    """What the released notebook prints: clean, and FGSM in normalised units with predicted labels."""
    return (Entry(Attack("none")), *(Entry(attack) for attack in SELECTION.values()))


def paper() -> Protocol:
    """The paper's three attacks: the released two and PGD 8/255, step 2/255, 3 steps, no random start."""
    pgd = Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3, space="normalized")
    return (*released(), Entry(pgd))


def rescaled(protocol: Protocol, ratio: float) -> Protocol:
    """The same attacks with eps and step times `ratio`.

    With the ratio of two networks' deviations, normalised eps are as large in pixels in both.
    """
    return tuple(
        replace(e, attack=replace(e.attack, eps=e.attack.eps * ratio, step=e.attack.step * ratio))
        for e in protocol
    )


def sound(n_fgsm: int | None, n_pgd: int | None, eps: Iterable[float]) -> Protocol:
    """Pixels and true labels: an FGSM curve over eps (in 1/255) and PGD-10 at 0.5 and 1/255."""
    relabelled = (Attack("fgsm", eps=e, space="normalized", labels="true") for e in (0.01, 0.1))
    curve = (Attack("fgsm", eps=e / 255) for e in eps)
    strong = (Attack("pgd", eps=e / 255, step=e / 4 / 255, iterations=10) for e in SMALL)
    return (
        *(Entry(attack, n_fgsm) for attack in (*relabelled, *curve)),
        *(Entry(attack, n_pgd) for attack in strong),
    )


def cifar() -> Protocol:
    """About four minutes for a ResNet-20 on 2 cores: all images where it is cheap, else the first n."""
    return paper() + sound(2000, 1000, (0.5, 1.0, 2.0, 4.0, 8.0))


def audit(n: int | None = 250, n_cheap: int | None = 1000) -> Protocol:
    """What the paper's protocol leaves open, one change at a time, and PGD-50 with a random restart.

    Its eps read as pixels, with true labels; its PGD with enough steps to arrive; a curve over eps by an
    attack that does not stop early. `n_cheap` images where a step or three are taken, else `n`; all of them
    for the high-pass filtered test set, which is the paper's Table 1.
    """
    pixels = [Attack("fgsm", eps=0.01), Attack("fgsm", eps=0.1), Attack("fgsm", eps=0.25 / 255)]
    unmasked = [Attack("fgsm", eps=e / 255, loss="float64") for e in (0.5, 2.0, 8.0)]
    filtered = [Attack("highpass", theta=theta) for theta in THETAS]
    short = Attack("pgd", eps=8 / 255, step=2 / 255, iterations=3)
    longer = [
        Attack("pgd", eps=8 / 255, step=2 / 255, iterations=i, restarts=r, space="normalized")
        for i, r in ((10, 0), (50, 0), (50, 1))
    ]
    return (
        *(Entry(attack) for attack in filtered),
        *(Entry(attack, n_cheap) for attack in (*pixels, *unmasked, short)),
        *(Entry(attack, n) for attack in (*longer, *curve())),
    )


def curve() -> list[Attack]:
    """PGD-50 from the image and from one random start, step eps / 10, in pixels."""
    return [Attack("pgd", eps=e / 255, step=e / 10 / 255, iterations=50, restarts=1) for e in CURVE]


def strong_pgd(n: int | None = 250, eps: Iterable[float] = SMALL, seed: int = 0) -> Protocol:
    """The audit's PGD-50 at the eps of AutoAttack, to compare the two.

    A record has an attack once: on another number of images it is one of another seed.
    """
    attacks = [attack for attack in curve() if any(attack.eps == e / 255 for e in eps)]
    return tuple(Entry(replace(attack, seed=seed), n) for attack in attacks)


def autoattack(n: int | None = 128, eps: Iterable[float] = SMALL, seed: int = 0) -> Protocol:
    """AutoAttack's standard version (Croce & Hein 2020) in pixels, by default at 0.5/255 and 1/255."""
    return tuple(Entry(Attack("autoattack", eps=e / 255, seed=seed), n) for e in eps)


def defended() -> Protocol:
    """For networks trained on attacked images: 2, 4 and 8/255.

    FGSM is there to be compared with: where one-step training has overfitted, it alone looks defended.
    """
    single = tuple(Entry(Attack("fgsm", eps=e / 255), 2000) for e in LARGE)
    return (*paper(), *single, *strong_pgd(eps=LARGE), *autoattack(eps=LARGE))


def strong() -> Protocol:
    """What arrives: the curve of PGD-50 over eps on 250 images, and AutoAttack."""
    return (*(Entry(attack, 250) for attack in curve()), *autoattack())


def sharp() -> Protocol:
    """For differences of a point between networks: `cifar`, and PGD-50 on 2,000 images."""
    return cifar() + strong_pgd(2000, seed=1)


def for_rules(protocol: Protocol, *rules: str) -> Protocol:
    """The same attacks, asked for on the weights of these rules alone."""
    return tuple(replace(entry, rules=rules) for entry in protocol)


def whole() -> Protocol:
    """Everything: for the suites of the paper's 300 epochs, which keep three checkpoints of every run.

    AutoAttack on other numbers of images is one of another seed, see `strong_pgd`.
    """
    return cifar() + audit() + autoattack(250, seed=2)


def digits() -> Protocol:
    """The same protocol in small, quickly; digits tolerate larger eps than CIFAR-10 does."""
    fgsm = (Attack("fgsm", eps=e / 255) for e in (2.0, 8.0, 16.0))
    pgd = Attack("pgd", eps=8 / 255, step=2 / 255, iterations=10)
    attacks = [entry.attack for entry in paper()[1:]] + [*fgsm, pgd]
    return (Entry(Attack("none")), *(Entry(a, 100 if a.kind == "pgd" else 200) for a in attacks))
