"""The README's answer and its table of findings: six questions, each answered by claims on the records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from gkp.study.analysis.claims import Verdict
from gkp.study.analysis.comparison import PROTOCOL, points, sound_attack
from gkp.study.analysis.labels import BENIGN, CONTROL, network_title
from gkp.study.report.pages.evidence import Evidence, answer, compact
from gkp.study.runs.suites import PAPER_RECIPE, SHORT_RECIPE, TELLING

METHOD, HEADLINE = "sr-gkp", PROTOCOL[0]  # FGSM 0.01
SEEDS_20, SHORT_56 = "cifar10-resnet20-seeds", "cifar10-resnet56-short"
COLUMNS = ("question", "answer", "size in points (95 % interval)", "n", "notebook")
LAYERS = {"S1": "random layers", "S2": "layers of the authors' ResNet-20"}
SMOOTHNESS = {"K1": "smoothness alone", "K2": "no smoothness"}
STRICTER = {
    "A1": "FGSM 0.01: true labels for predicted ones",
    "A4": "PGD 8/255 norm.: ten steps for three",
    "A8": "0.5/255: PGD-50 for FGSM",
}
Row = tuple[str, ...]


# ---- three lines ---------------------------------------------------------------------------------


def three_lines(evidence: Evidence) -> str:
    """Is it the released method, is its robustness free, and how sure is that."""
    kernels = [evidence.verdict(name) for name in LAYERS]
    whole = "exactly" if answer(kernels) == "yes" else "not everywhere"
    compared = differences(evidence, SEEDS_20)
    robust = [verdict for name, verdict in compared.items() if name != BENIGN]
    lost, gained = (sum(v.status == status for v in robust) for status in ("MISS", "OK"))
    free = "Free robustness is shown" if gained else "No free robustness is shown"
    sizes = sorted(abs(verdict.ours) for verdict in robust)
    seeds = max(len(verdict.values) for verdict in robust)
    return (
        f"- **The released search is reproduced {whole}**: ours keeps the same kernels in "
        f"{listed_shares(kernels)}.\n"
        f"- **{free}**: against the equally fine-tuned control, SR-GKP is shown to lose under {lost} of "
        f"{len(robust)} attacks and to gain under {gained} (differences of {sizes[0]:.1f} to "
        f"{sizes[-1]:.1f} points, {seeds} seeds, ResNet-20).\n"
        f"- **Provisional**: {SHORT_RECIPE.epochs} epochs of fine-tuning where the paper has "
        f"{PAPER_RECIPE.epochs}; {seeds} seeds for SR-GKP, the control and {len(others())} others, "
        f"one seed for the rest and for the paper's own {network_title('resnet56')}.\n"
    )


def price(evidence: Evidence) -> str:
    """What SR-GKP costs: claims T1, T3 and T4 in a sentence."""
    seconds, images, slower = (evidence.verdict(name).ours for name in ("T1", "T3", "T4"))
    return (
        f"The search takes {seconds:.1f} s on a ResNet-20 and looks at {images:.0f} images; run as grouped "
        f"convolutions on a CPU, the pruned network takes {slower:.1f} times the unpruned one's time at "
        f"batch 64 ({evidence.notebook('04_cost')}), so run it dense there.\n"
    )


def limits(evidence: Evidence) -> str:
    """What the findings do not reach, as one paragraph."""
    few, strong = evidence.verdict("U1"), evidence.verdict("A9")
    low, high = few.interval or (math.nan, math.nan)
    place = few.claim.ours
    images = points(evidence.comparison(place["suite"]), [place["attack"]])["n"].min()
    return (
        f"**Limits.** Every finding is about a short fine-tuning of {SHORT_RECIPE.epochs} epochs; the "
        f"paper's {PAPER_RECIPE.epochs} are [one command and a GPU]({evidence.up}docs/gpu.md) away. The "
        "paper's own networks were never released: ours start from public ones. An interval over images "
        "speaks of these networks on other images, one over seeds of other trainings. None is corrected "
        "for the number of claims; the tables of notebook 02 are, for the number of methods. AutoAttack saw "
        f"{images} images, which leaves its differences uncertain by {(high - low) / 2:.0f} points. At the "
        f"usual 8/255 in pixels PGD-50 leaves {strong.ours:g} % of the images right, whatever the network: "
        f"robustness here is about small eps. All tables: [docs/results.md]({evidence.up}docs/results.md).\n"
    )


# ---- the table -----------------------------------------------------------------------------------


def findings(evidence: Evidence) -> str:
    """One row per question; its answers are yes, no or open, by the status of claims."""
    rows = [
        same_kernels(evidence),
        kept(evidence, SEEDS_20, "Does SR-GKP keep what the equally fine-tuned ResNet-20 has?"),
        kept(evidence, SHORT_56, "The same for the ResNet-56, a network of the paper?"),
        other_methods(evidence),
        smoothness(evidence),
        protocol(evidence),
    ]
    return compact(pd.DataFrame(rows, columns=list(COLUMNS)))


def same_kernels(evidence: Evidence) -> Row:
    """Claims S1 and S2: layers on which our search keeps the released kernels."""
    found = [evidence.verdict(name) for name in LAYERS]
    n = f"{sum(verdict.ours for verdict in found):.0f} layers"
    question = "Does our search keep the released kernels?"
    return (question, answer(found), listed_shares(found), n, evidence.notebook("01_method"))


def kept(evidence: Evidence, suite: str, question: str) -> Row:
    """SR-GKP against the control: benign, the paper's attacks, PGD-10 at its smallest eps in pixels."""
    found = differences(evidence, suite)
    titles = evidence.comparison(suite).titles
    size = lines((titles[attack], points_text(verdict)) for attack, verdict in found.items())
    n = trainings(evidence, suite, found)
    return (question, answer(list(found.values())), size, n, evidence.notebook("02_fragility"))


def other_methods(evidence: Evidence) -> Row:
    """SR-GKP against every method with three seeds, under the paper's headline attack."""
    found = {name: evidence.difference(SEEDS_20, HEADLINE, name) for name in others()}
    size = lines((name, points_text(verdict)) for name, verdict in found.items())
    question = "Is it more robust under FGSM 0.01 than other methods on the ResNet-20?"
    n = trainings(evidence, SEEDS_20, {HEADLINE: next(iter(found.values()))})
    return (question, answer(list(found.values())), size, n, evidence.notebook("02_fragility"))


def smoothness(evidence: Evidence) -> Row:
    """Claims K1 and K2: how many groups keep their kernels whatever smoothness weighs."""
    found = {title: evidence.verdict(name) for name, title in SMOOTHNESS.items()}
    size = lines((title, f"{v.ours:.1f} % of groups keep theirs {v.claim.id}") for title, v in found.items())
    question = "Does the search keep the same kernels whatever smoothness weighs in it?"
    return (question, answer(list(found.values())), size, "4 networks", evidence.notebook("03_ablations"))


def protocol(evidence: Evidence) -> Row:
    """Claims A1, A4 and A8: what is left where one thing of the paper's protocol is made stricter."""
    found = {title: evidence.verdict(name) for name, title in STRICTER.items()}
    size = lines((title, f"{span(v.values)} {v.claim.id}") for title, v in found.items())
    n = f"{len(next(iter(found.values())).values)} networks"
    question = "Does the paper's protocol find as much as stricter attacks?"
    return (question, answer(list(found.values())), size, n, evidence.notebook("05_audit"))


# ---- parts of a row ------------------------------------------------------------------------------


def others() -> list[str]:
    """The methods, random filters among them, that SR-GKP is compared with over three seeds."""
    return [name for name in TELLING if name not in (METHOD, "unpruned", CONTROL)]


def differences(evidence: Evidence, suite: str) -> dict[str, Verdict]:
    """Attack -> SR-GKP minus the equally fine-tuned control."""
    attacks = (BENIGN, *PROTOCOL, sound_attack(evidence.comparison(suite)))
    return {attack: evidence.difference(suite, attack, CONTROL) for attack in attacks}


def trainings(evidence: Evidence, suite: str, found: dict[str, Verdict]) -> str:
    """ "3 seeds; 9,979 and 1,000 images"."""
    seeds = max(len(verdict.values) for verdict in found.values())
    frame = points(evidence.comparison(suite), list(found))
    sizes = sorted(set(frame[frame.label == METHOD]["n"]), reverse=True)
    return f"{seeds} seed{'s' * (seeds > 1)}; {' and '.join(f'{n:,}' for n in sizes)} images"


def listed_shares(verdicts: Sequence[Verdict]) -> str:
    """ "24 of 24 random layers and 18 of 18 layers of the authors' ResNet-20"."""
    return " and ".join(f"{v.ours:.0f} of {v.claim.expect:.0f} {LAYERS[v.claim.id]}" for v in verdicts)


def lines(parts: Iterable[tuple[str, str]]) -> str:
    """One "title: text" a line, within a cell."""
    return "<br>".join(f"{title}: {text}" for title, text in parts)


def span(values: Sequence[float]) -> str:
    """ "−20.3 to −14.1", from the largest loss to the smallest."""
    return signed(f"{min(values):+.1f} to {max(values):+.1f}")


def points_text(verdict: Verdict) -> str:
    """ "−1.86 (−3.17 to −0.55) Y2", with the id of the claim where it has one."""
    if verdict.interval is None:
        return "no record"
    low, high = verdict.interval
    return signed(f"{verdict.ours:+.2f} ({low:+.2f} to {high:+.2f})") + f" {verdict.claim.id}".rstrip()


def signed(text: str) -> str:
    """The text with true minus signs."""
    return text.replace("-", "−")
