"""What the README says first and last: the answer above its figure, the price, and the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gkp.study.analysis import seeds
from gkp.study.analysis.claims import Verdict
from gkp.study.analysis.comparison import points
from gkp.study.analysis.labels import BENIGN, CONTROL, method_title
from gkp.study.analysis.method.factors import BEST
from gkp.study.report.pages.evidence import Evidence, answer
from gkp.study.report.pages.findings import (
    ATTACKED,
    HEADLINE,
    LAYERS,
    LONG_56,
    METHOD,
    PROFILES,
    PROFILES_56,
    SEEDS_20,
    SHORT_56,
    differences,
    epochs,
    listed_shares,
    network,
    others,
    robust,
    setting,
)
from gkp.study.runs.suites.recipes import PAPER_RECIPE
from gkp.study.runs.suites.stages import EARLY
from gkp.study.runs.suites.trained import TRAINED_LONGER
from gkp.utils.stats import FEWEST

AUTOATTACKED = ("U1", "J11")  # claims: SR-GKP beside the control under it, ResNet-20 and ResNet-56
NOTHING_LEFT = ("A9", "J23")  # claims: nothing at the usual eps, ResNet-20 and ResNet-56


def first_lines(evidence: Evidence) -> str:
    """Is it the released method, is its robustness free, is it ahead of others, and how sure is that."""
    kernels = [evidence.verdict(name) for name in LAYERS]
    whole = "exactly" if answer(kernels) == "yes" else "not everywhere"
    witnesses = (LONG_56, SHORT_56, SEEDS_20)
    compared = {suite: robust(differences(evidence, suite)) for suite in witnesses}
    gained = sum(verdict.status == "OK" for verdicts in compared.values() for verdict in verdicts)
    free = "Free robustness is shown" if gained else "No free robustness is shown"
    return (
        f"- **The released search is reproduced {whole}**: ours keeps the same kernels in "
        f"{listed_shares(kernels)}.\n"
        f"- **{free}**: SR-GKP is shown to be less robust than the equally fine-tuned control under "
        f"{'; '.join(lost(evidence, suite, verdicts) for suite, verdicts in compared.items())}; to be more "
        f"robust under {gained or 'none'}.\n"
        f"- {beside_others(evidence)}\n"
        f"- {with_a_profile(evidence)}\n"
        f"- {provisional(evidence)}\n"
    )


def lost(evidence: Evidence, suite: str, verdicts: Sequence[Verdict]) -> str:
    """ "3 of 4 attacks by 5.2 to 6.8 points (ResNet-56, 4 epochs, 3 seeds)"."""
    sizes = sorted(-verdict.ours for verdict in verdicts if verdict.status == "MISS")
    size = f" by {sizes[0]:.1f} to {sizes[-1]:.1f} points" if sizes else ""
    return f"{len(sizes)} of {len(verdicts)} attacks{size} ({setting(evidence, suite)})"


def beside_others(evidence: Evidence) -> str:
    """SR-GKP and the other methods after the long training."""
    verdicts = [
        evidence.difference(LONG_56, attack, other)
        for other in TRAINED_LONGER
        if other != METHOD
        for attack in attacks(evidence, LONG_56)
    ]
    ahead, behind = (sum(verdict.status == status for verdict in verdicts) for status in ("OK", "MISS"))
    titles = [method_title(name) for name in TRAINED_LONGER if name != METHOD]
    lead = f"{'Ahead' if ahead > behind else 'Not ahead'} of the other methods trained as long"
    of_all = setting(evidence, LONG_56, TRAINED_LONGER)
    return (
        f"**{lead}**: beside {', '.join(titles[:-1])} and {titles[-1]} SR-GKP is shown to be more robust in "
        f"{ahead} of {len(verdicts)} comparisons and less in {behind} ({of_all})."
    )


def with_a_profile(evidence: Evidence) -> str:
    """SR-GKP-B, which prunes early stages most, against SR-GKP."""
    compared = {
        suite: [evidence.difference(suite, attack, METHOD, BEST) for attack in attacks(evidence, suite)]
        for suite in (PROFILES_56, PROFILES)
    }
    ahead, behind = (
        {suite: sum(v.status == status for v in verdicts) for suite, verdicts in compared.items()}
        for status in ("OK", "MISS")
    )
    better = "better" if sum(ahead.values()) > sum(behind.values()) else "no better"
    counts = "; ".join(
        f"{ahead[suite]} of {len(verdicts)} attacks ({setting(evidence, suite, (BEST, METHOD))})"
        for suite, verdicts in compared.items()
    )
    return (
        f"**Pruned {EARLY} over the stages it does {better}**: SR-GKP-B is shown to be more robust than "
        f"SR-GKP under {counts}; less under {sum(behind.values()) or 'none'}."
    )


def attacks(evidence: Evidence, suite: str) -> list[str]:
    """The paper's, and PGD-10 at its smallest eps in pixels."""
    return [attack for attack in differences(evidence, suite) if attack != BENIGN]


def provisional(evidence: Evidence) -> str:
    """How far this is from the paper's training."""
    several = {*others(), BEST}
    return (
        f"**Provisional**: {epochs(evidence, LONG_56)} epochs and {long_seeds(evidence)} on the "
        f"{network(evidence, LONG_56)}, where the paper has {PAPER_RECIPE.epochs}; "
        f"{epochs(evidence, SHORT_56)} epochs and {seeds.counted(evidence.comparison(SHORT_56))} of the same "
        f"networks; {epochs(evidence, SEEDS_20)} epochs on the {network(evidence, SEEDS_20)}, "
        f"{seeds.counted(evidence.comparison(SEEDS_20))} for SR-GKP, the control and {len(several)} others, "
        "one for the rest of the grid."
    )


def long_seeds(evidence: Evidence) -> str:
    """ "1 seed", or "2 seeds (SR-GKP and the control, 1 for the rest)"."""
    long = evidence.comparison(LONG_56)
    pair, all_of_them = (seeds.in_common(long, names) for names in ((METHOD, CONTROL), long.seeds_of_each))
    if pair == all_of_them:
        return seeds.counted(long)
    return f"{pair} seeds (SR-GKP and the control, {all_of_them} for the rest)"


def price(evidence: Evidence) -> str:
    """What SR-GKP costs: claims T1, T3 and T4 in a sentence."""
    seconds, images, slower = (evidence.verdict(name).ours for name in ("T1", "T3", "T4"))
    return (
        f"The pruning step takes {seconds:.1f} s on a ResNet-20 and looks at {images:.0f} images; run as "
        f"grouped convolutions on a CPU, the pruned network takes {slower:.1f} times the unpruned one's "
        f"time at batch 64 ({evidence.notebook('04_cost')}), so let `gkp.export` choose.\n"
    )


def limits(evidence: Evidence) -> str:
    """What the findings do not reach, as one paragraph."""
    few = [evidence.verdict(name) for name in AUTOATTACKED]
    images = min(_images(evidence, verdict) for verdict in few)
    widest = max((high - low) / 2 for low, high in (v.interval or (math.nan, math.nan) for v in few))
    return (
        f"**Limits.** Trainings are short: the paper's {PAPER_RECIPE.epochs} are [one command and a GPU]"
        f"({evidence.up}docs/gpu.md) away. {what_few_seeds_leave(evidence)} The "
        "paper's own networks were never released: ours start from public ones. No interval is corrected "
        "for the number of claims; the tables of notebook 02 are, for the number of methods. AutoAttack saw "
        f"{images} images: its differences are uncertain by up to {widest:.0f} points. "
        f"{small_eps(evidence)} All tables: "
        f"[docs/results.md]({evidence.up}docs/results.md).\n"
    )


def small_eps(evidence: Evidence) -> str:
    """What the usual eps leaves of networks trained on clean images and on attacked ones."""
    clean, deeper = (evidence.verdict(name) for name in NOTHING_LEFT)
    trained, attack = evidence.comparison(ATTACKED), clean.claim.ours["attack"]
    frame = points(trained, [attack])
    accuracies = frame[frame.label != "unpruned"]["mean"]
    most, images = max(clean.ours, deeper.ours), min(_images(evidence, one) for one in (clean, deeper))
    return (
        f"At the usual 8/255 in pixels PGD-50 leaves {most:g} % of {images} images right of "
        f"{len(clean.values)} ResNet-20 and {len(deeper.values)} ResNet-56 trained on clean ones: robustness "
        f"here is about small eps. Trained on attacked ones, {len(accuracies)} keep {accuracies.min():.0f} "
        f"to {accuracies.max():.0f} %."
    )


def _images(evidence: Evidence, verdict: Verdict) -> int:
    """On how many images the networks of the claim's suite met its attack, at least."""
    place = verdict.claim.ours
    return points(evidence.comparison(place["suite"]), [place["attack"]])["n"].min()


def what_few_seeds_leave(evidence: Evidence) -> str:
    """What an interval is about, and how far trainings that differ in their seed alone lie apart."""
    long, several = evidence.comparison(LONG_56), evidence.comparison(SHORT_56)
    what = "Intervals over images are about these networks on other images, those over seeds about trainings."
    if len(long.seeds) >= FEWEST:
        return what
    apart = seeds.spread(several, [HEADLINE])["range"].max()
    return (
        f"{what} {seeds.counted(long)} of {epochs(evidence, LONG_56)} epochs say nothing about other "
        f"trainings: after {epochs(evidence, SHORT_56)}, {len(several.seeds)} trainings of one method lie "
        f"up to {apart:.1f} points apart under FGSM 0.01."
    )
