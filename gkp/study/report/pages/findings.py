"""The README's table of findings: questions, each answered by claims on the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from gkp.study.analysis import seeds
from gkp.study.analysis.claims import Verdict
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import PROTOCOL, pixel_attacks, points, sound_attack
from gkp.study.analysis.labels import BENIGN, CONTROL, method_title, network_title
from gkp.study.analysis.method import factors
from gkp.study.analysis.method.finetunings import ROBUST
from gkp.study.analysis.verdict import ABLATIONS
from gkp.study.report.pages.evidence import Evidence, answer, compact
from gkp.study.runs.suites.grids import TELLING
from gkp.study.runs.suites.stages import EARLY, FINETUNINGS
from gkp.study.runs.suites.trained import TRAINED_LONGER

METHOD, HEADLINE = "sr-gkp", PROTOCOL[0]  # FGSM 0.01
LONG_56, SHORT_56 = "cifar10-resnet56-57", "cifar10-resnet56-seeds"
SEEDS_20 = "cifar10-resnet20-seeds"
PROFILES, PROFILES_56 = "cifar10-resnet20-profiles", "cifar10-resnet56-profiles"
ATTACKED = "cifar10-resnet20-adversarial"
RANDOM_EARLY = "sr-gkp-b (strategy-random)"  # random kernels, most of them in the early stages
COLUMNS = ("question", "answer", "size in points (95 % interval)", "n", "notebook")
LAYERS = {"S1": "random layers", "S2": "layers of the authors' ResNet-20"}
SMOOTHNESS = {"K1": "smoothness alone", "K2": "no smoothness"}
STRICTER = {
    "A1": "FGSM 0.01: true labels for predicted ones",
    "A4": "PGD 8/255 norm.: ten steps for three",
    "A8": "0.5/255: PGD-50 for FGSM",
}
Row = tuple[str, ...]


# ---- the table -----------------------------------------------------------------------------------


def findings(evidence: Evidence) -> str:
    """One row per question; its answers are yes, no or open, by the status of claims."""
    long, short = (f"{network(evidence, s)}, {epochs(evidence, s)} epochs" for s in (LONG_56, SEEDS_20))
    other = f"Is SR-GKP more robust under FGSM 0.01 than others ({long})?"
    early = f"Do random kernels, pruned {EARLY} over the stages, keep it ({network(evidence, PROFILES)})?"
    common = [name for name in TRAINED_LONGER if name in others()]
    rows = [
        same_kernels(evidence),
        kept(evidence, LONG_56, f"Does SR-GKP keep what the equally fine-tuned network has ({long})?"),
        kept(evidence, SEEDS_20, f"The same, {short}?"),
        pruned_early(evidence, PROFILES, early),
        pruned_early(evidence, PROFILES_56, f"The same, {network(evidence, PROFILES_56)}?"),
        trained_on_attacks(evidence),
        fine_tuned_otherwise(evidence),
        other_methods(evidence, LONG_56, TRAINED_LONGER, other),
        other_methods(evidence, SHORT_56, TRAINED_LONGER, f"The same, {epochs(evidence, SHORT_56)} epochs?"),
        other_methods(evidence, SEEDS_20, common, f"The same, {short}?"),
        more_training(evidence),
        smoothness(evidence),
        protocol(evidence),
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    linked = ~table.notebook.duplicated()  # a notebook is linked once
    table["notebook"] = [
        evidence.short_link(name) if first else name.partition("_")[0]
        for name, first in zip(table.notebook, linked, strict=True)
    ]
    return compact(table)


def same_kernels(evidence: Evidence) -> Row:
    """Claims S1 and S2: layers on which our search keeps the released kernels."""
    verdicts = [evidence.verdict(name) for name in LAYERS]
    n = f"{sum(verdict.ours for verdict in verdicts):.0f} layers"
    question = "Does our search keep the released kernels?"
    return (question, answer(verdicts), listed_shares(verdicts), n, "01_method")


def kept(evidence: Evidence, suite: str, question: str) -> Row:
    """SR-GKP against the control: benign, the paper's attacks, PGD-10 at its smallest eps in pixels."""
    verdicts = differences(evidence, suite)
    return _row(evidence, suite, question, verdicts, briefly(evidence.comparison(suite)), verdicts)


def other_methods(evidence: Evidence, suite: str, names: Iterable[str], question: str) -> Row:
    """SR-GKP against other methods under the paper's headline attack."""
    verdicts = {name: evidence.difference(suite, HEADLINE, name) for name in names if name != METHOD}
    titles = {name: method_title(name) for name in verdicts}
    return _row(evidence, suite, question, verdicts, titles, {HEADLINE: next(iter(verdicts.values()))})


def more_training(evidence: Evidence) -> Row:
    """SR-GKP after the long training against SR-GKP after the short one."""
    verdicts = {
        attack: evidence.longer(LONG_56, SHORT_56, attack, METHOD)
        for attack in differences(evidence, LONG_56)
    }
    longest, shortest = epochs(evidence, LONG_56), epochs(evidence, SHORT_56)
    question = f"Does more training leave SR-GKP more ({longest} epochs instead of {shortest})?"
    return _row(evidence, LONG_56, question, verdicts, briefly(evidence.comparison(LONG_56)), verdicts)


def _row(
    evidence: Evidence,
    suite: str,
    question: str,
    verdicts: Mapping[str, Verdict],
    titles: Mapping[str, str],
    sized: Mapping[str, Verdict],
    label: str = METHOD,
    notebook: str = "02_fragility",
) -> Row:
    """Question, answer, sizes of `verdicts` by title, seeds and images of those in `sized`, notebook."""
    size = lines((titles[name], points_text(verdict)) for name, verdict in verdicts.items())
    n = trainings(evidence, suite, sized, label)
    return (question, answer(list(verdicts.values())), size, n, notebook)


def pruned_early(evidence: Evidence, suite: str, question: str) -> Row:
    """A network that lost most in its early stages against the control."""
    verdicts = differences(evidence, suite, RANDOM_EARLY)
    titles = briefly(evidence.comparison(suite))
    return _row(evidence, suite, question, verdicts, titles, verdicts, RANDOM_EARLY, "06_better")


def fine_tuned_otherwise(evidence: Evidence) -> Row:
    """SR-GKP-B after each other fine-tuning of no more passes minus itself after the plain one."""
    plain, *others = FINETUNINGS.items()
    robust, clean = (
        {name: evidence.longer(suite, plain[1], attack, factors.BEST) for name, suite in others}
        for attack in (ROBUST, BENIGN)
    )
    size = lines((name, f"{points_text(v)}, benign {points_text(clean[name])}") for name, v in robust.items())
    question = "Does another fine-tuning leave SR-GKP-B more under PGD-10 0.5/255 (ResNet-20)?"
    sized = dict.fromkeys((BENIGN, ROBUST), next(iter(robust.values())))
    n = trainings(evidence, others[0][1], sized, factors.BEST)
    return (question, answer(list(robust.values())), size, n, "06_better")


def trained_on_attacks(evidence: Evidence) -> Row:
    """SR-GKP against the unpruned network, both trained on attacked images: benign, and PGD-50 by eps."""
    comparison = evidence.comparison(ATTACKED)
    strong = [name for name in pixel_attacks(comparison, "pgd") if comparison.attacks[name].iterations == 50]
    attacks = (BENIGN, *strong)
    verdicts = {attack: evidence.difference(ATTACKED, attack, CONTROL) for attack in attacks}
    question = "Does SR-GKP, fine-tuned on attacked images, keep what the unpruned one has then (ResNet-20)?"
    titles = {attack: comparison.titles[attack].replace(" +1", "") for attack in attacks}  # of the restart
    return _row(evidence, ATTACKED, question, verdicts, titles, verdicts)


def smoothness(evidence: Evidence) -> Row:
    """Claims K1 and K2: how many groups keep their kernels whatever smoothness weighs."""
    verdicts = {title: evidence.verdict(name) for name, title in SMOOTHNESS.items()}
    size = lines(
        (title, f"{v.ours:.1f} % of groups keep theirs {v.claim.id}") for title, v in verdicts.items()
    )
    question = "Does the search keep the same kernels whatever smoothness weighs in it?"
    fact = evidence.store.fact(*ABLATIONS)
    n = f"{len(fact.facts['smoother']) if fact else 0} networks"
    return (question, answer(list(verdicts.values())), size, n, "03_ablations")


def protocol(evidence: Evidence) -> Row:
    """Claims A1, A4 and A8: what is left where one thing of the paper's protocol is made stricter."""
    verdicts = {title: evidence.verdict(name) for name, title in STRICTER.items()}
    size = lines((title, f"{span(v.values)} by network {v.claim.id}") for title, v in verdicts.items())
    counts = sorted({len(verdict.values) for verdict in verdicts.values()})
    n = f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} networks"
    question = "Does the paper's protocol find as much as stricter attacks?"
    return (question, answer(list(verdicts.values())), size, n, "05_audit")


# ---- parts of a row ------------------------------------------------------------------------------


def others() -> list[str]:
    """The methods, random filters among them, that SR-GKP is compared with over three seeds."""
    return [name for name in TELLING if name not in (METHOD, "unpruned", CONTROL)]


def network(evidence: Evidence, suite: str) -> str:
    return network_title(evidence.comparison(suite).trained[0].run.network)


def epochs(evidence: Evidence, suite: str) -> int:
    return evidence.comparison(suite).trained[0].run.epochs


def setting(evidence: Evidence, suite: str, labels: Sequence[str] = (METHOD, CONTROL)) -> str:
    """ "ResNet-56, 57 epochs, 1 seed": of a comparison of the networks of these labels."""
    count = seeds.in_common(evidence.comparison(suite), labels)
    return f"{network(evidence, suite)}, {epochs(evidence, suite)} epochs, {count} seed{'s' * (count > 1)}"


def robust(verdicts: Mapping[str, Verdict]) -> list[Verdict]:
    """Those under attack."""
    return [verdict for attack, verdict in verdicts.items() if attack != BENIGN]


def differences(evidence: Evidence, suite: str, label: str = METHOD) -> dict[str, Verdict]:
    """Attack -> SR-GKP, or another, minus the equally fine-tuned control."""
    attacks = (BENIGN, *PROTOCOL, sound_attack(evidence.comparison(suite)))
    return {attack: evidence.difference(suite, attack, CONTROL, label) for attack in attacks}


def compared_lengths(evidence: Evidence) -> list[str]:
    """The attacks under which two lengths of training are compared: the paper's and all PGD in pixels."""
    return [BENIGN, *PROTOCOL, *pixel_attacks(evidence.comparison(LONG_56), "pgd")]


def trainings(evidence: Evidence, suite: str, verdicts: Mapping[str, Verdict], label: str = METHOD) -> str:
    """ "3 seeds; 9,979 and 1,000 images"."""
    seeds = max(len(verdict.values) for verdict in verdicts.values())
    frame = points(evidence.comparison(suite), list(verdicts))
    sizes = sorted(set(frame[frame.label == label]["n"]), reverse=True)
    return f"{seeds} seed{'s' * (seeds > 1)}; {' and '.join(f'{n:,}' for n in sizes)} images"


def briefly(comparison: Comparison) -> dict[str, str]:
    """Attack -> "FGSM 0.01": its title without the marks that tell the paper's units from pixels."""
    return {attack: title.partition(" norm.")[0] for attack, title in comparison.titles.items()}


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
