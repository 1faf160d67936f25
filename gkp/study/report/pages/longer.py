"""What the networks that were trained longest say, in sentences: every number and every word from records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gkp.study.analysis import paper as published
from gkp.study.analysis import seeds, training
from gkp.study.analysis.claims import Verdict
from gkp.study.analysis.comparison import PROTOCOL
from gkp.study.analysis.labels import BENIGN, CONTROL, method_title
from gkp.study.report.pages.evidence import Evidence
from gkp.study.report.pages.findings import (
    LONG_56,
    METHOD,
    SHORT_56,
    briefly,
    compared_lengths,
    differences,
    epochs,
    setting,
    signed,
)
from gkp.study.runs import protocols
from gkp.study.runs.suites.recipes import PAPER_RECIPE
from gkp.study.runs.suites.trained import TRAINED_LONGER
from gkp.utils.stats import FEWEST

KINDS = {"MISS": "shown to be behind", "OK": "shown to be ahead", "OPEN": "open"}
CHOSEN = "best-test"  # how the paper chooses an epoch


def longer(evidence: Evidence) -> str:
    """All sentences as a list; each works with any number of seeds."""
    sentences = (
        kept(evidence),
        beside_others(evidence),
        at_the_papers_choice(evidence),
        under_strong_attacks(evidence),
        more_training(evidence),
        ranks(evidence),
        left_open(evidence),
        attacked_again(evidence),
    )
    return "".join(f"- {sentence}\n" for sentence in sentences if sentence)


def kept(evidence: Evidence) -> str:
    """SR-GKP beside the control, attack by attack."""
    verdicts = differences(evidence, LONG_56)
    return (
        f"**Beside the equally fine-tuned network** ({setting(evidence, LONG_56)}), SR-GKP is "
        f"{by_kind(evidence, verdicts, sized=True)}."
    )


def beside_others(evidence: Evidence) -> str:
    """SR-GKP beside each of the other pruned networks."""
    parts = []
    for other in others():
        verdicts = {a: evidence.difference(LONG_56, a, other) for a in differences(evidence, LONG_56)}
        parts.append(f"{method_title(other)}: {by_kind(evidence, verdicts)}")
    return f"**Beside the other pruned networks**, SR-GKP is, against {'. Against '.join(parts)}."


def at_the_papers_choice(evidence: Evidence) -> str:
    """How many comparisons come out alike at the epoch that the paper would choose."""
    alike, changed, count = 0, [], 0
    for other in (CONTROL, *others()):
        for attack in differences(evidence, LONG_56):
            last = evidence.difference(LONG_56, attack, other)
            best = evidence.asked("", {**_without_seed(last), "rule": CHOSEN})
            if "MISSING" in (last.status, best.status):
                continue
            count += 1
            alike += last.status == best.status
            if last.status != best.status:
                title = named(evidence, attack)
                changed.append(f"{title} beside {method_title(other)}: {KINDS[best.status]}")
    exceptions = f" (otherwise: {'; '.join(changed)})" if changed else ""
    return (
        f"**At the epoch that is best on the test images**, which is the paper's choice, {alike} of {count} "
        f"comparisons come out as after the last epoch{exceptions}."
    )


def under_strong_attacks(evidence: Evidence) -> str:
    """SR-GKP beside the control and the other pruned networks under PGD-50 and AutoAttack; else ""."""
    control, *rest = (strongly(evidence, other) for other in (CONTROL, *others()))
    if not control:
        return ""
    met = ((method_title(name), text) for name, text in zip(others(), rest, strict=True) if text)
    against = [f" Against {title}: {text}." for title, text in met]
    return (
        "**Under the strongest attacks** (PGD-50: with a restart) that leave anything of the two, beside the "
        f"same network, it is {control}.{''.join(against)}"
    )


def strongly(evidence: Evidence, other: str) -> str:
    """SR-GKP beside another network under each strong attack that both met and one survived, by images."""
    accuracy = evidence.comparison(LONG_56).points
    by_images: dict[str, dict[str, Verdict]] = {}
    for entry in protocols.strong():
        name = entry.attack.name
        verdict = evidence.difference(LONG_56, name, other)
        if verdict.status != "MISSING" and any(accuracy[x, "last", name].mean for x in (METHOD, other)):
            by_images.setdefault(f"{entry.n} images", {})[name] = verdict
    parts = (f"{by_kind(evidence, part, sized=True)} ({images})" for images, part in by_images.items())
    return "; ".join(parts)


def more_training(evidence: Evidence) -> str:
    """What the long training brings to each network of the short one, by attack."""
    short, long = evidence.comparison(SHORT_56), evidence.comparison(LONG_56)
    parts = []
    for attack in compared_lengths(evidence):
        frame = training.longer(short, long, attack)
        shown = int((frame.p < training.LEVEL).sum())
        low, high = frame.difference.min(), frame.difference.max()
        span = signed(f"{low:+.1f} to {high:+.1f}")
        parts.append(f"{named(evidence, attack)} {span} (significant for {shown} of {len(frame)} networks)")
    return (
        f"**More training**: {epochs(evidence, LONG_56)} epochs of the paper's schedule instead of "
        f"{epochs(evidence, SHORT_56)} of a one-cycle change what the same networks have, in points: "
        f"{'; '.join(parts)}."
    )


def ranks(evidence: Evidence) -> str:
    """Whether the short recipe ranks the networks as the long one does."""
    short, long = evidence.comparison(SHORT_56), evidence.comparison(LONG_56)
    parts, counts = [], []
    for attack in compared_lengths(evidence):
        correlations = training.ranks(short, long, attack)
        counts.append(training.order_kept(short, long, attack))
        texts = [f"{r['correlation']:.2f} ({r['low']:.1f} to {r['high']:.1f})" for r in correlations.values()]
        parts.append(f"{named(evidence, attack)} {signed(' and '.join(texts))}")
        networks = int(correlations["spearman"]["networks"])
    clear, same, away, other = (
        sum(count[name] for count in counts) for name in ("significant", "same", "open", "other")
    )
    trust = "may" if other == 0 and same > away else "may not"
    return (
        f"**Do they rank alike?** Spearman's and Kendall's correlations of the {networks} pruned networks "
        f"between {epochs(evidence, SHORT_56)} and {epochs(evidence, LONG_56)} epochs, in brackets roughly "
        f"what other images would leave open: {'; '.join(parts)}. Of {clear} differences between networks "
        f"that are significant after the long training, {same} are so after the short one, the same way, and "
        f"{other} the other way; {away} are not significant there. So the short recipe {trust} be trusted "
        "with whom it puts clearly ahead among these networks, not with how much is left, nor with the order "
        "of methods that lie close."
    )


def left_open(evidence: Evidence) -> str:
    """What missing epochs and seeds leave open: the course's end, and the distance to the paper's rows."""
    long = evidence.comparison(LONG_56)
    frame = training.by_epoch(long)
    ends = frame[frame.lr != frame.groupby(["label", "seed"]).lr.shift(-1)]
    moved = ends.groupby(["label", "seed"]).test.agg(lambda values: values.iloc[-1] - values.iloc[-2])
    gaps = to_the_paper(evidence)
    caution = (
        f" {seeds.counted(long)} cannot say how far another training would lie; the intervals are about "
        "other images."
        if len(long.seeds) < FEWEST
        else ""
    )
    span = signed(f"{moved.min():+.2f} to {moved.max():+.2f}")
    return (
        f"**What {epochs(evidence, LONG_56)} epochs instead of {PAPER_RECIPE.epochs} leave open.** Those at "
        f"the last learning rate moved the accuracy by {span} points. At the paper's choice of the epoch, "
        f"{gaps}. The unit of eps explains a part (claims W); whether the paper's length would close the "
        f"rest, or its network differs, is not known.{caution}"
    )


def to_the_paper(evidence: Evidence) -> str:
    """The distance of SR-GKP and of the unpruned network to the paper's Table 10, in points."""
    long = evidence.comparison(LONG_56)
    table = published.rows(evidence.store.root / published.TABLES, long.trained[0].run.network)
    printed, parts = table.set_index("label"), []
    for label, row, words in ((METHOD, METHOD, "SR-GKP"), (CONTROL, "unpruned", "the fine-tuned control")):
        gaps = {a: long.points[label, CHOSEN, a].mean - printed[a][row] for a in (BENIGN, *PROTOCOL)}
        texts = [f"{named(evidence, attack)} {signed(f'{gap:+.1f}')}" for attack, gap in gaps.items()]
        parts.append(f"{words} ({', '.join(texts)})")
    return f"the distance to what the paper prints is, in points, that of {listed(parts)}"


def attacked_again(evidence: Evidence) -> str:
    """How far the recorded answers are those that a CPU gives; "" before somebody has looked."""
    fact = evidence.store.fact(LONG_56, "repeated")
    if fact is None:
        return ""
    facts = fact.facts
    differ, answers = sum(facts["differ"].values()), facts["answers"] * len(facts["differ"])
    return (
        f"**Checked**: attacked again on a CPU, {differ} of {answers:,} answers of "
        f"{facts['answers'] // facts['images']} checkpoints to the paper's attacks ({facts['images']} images "
        f"each) differ from those recorded on {listed(facts['recorded_on'])}; {facts['damaged']} files have "
        "another SHA-256 than recorded."
    )


# ---- parts ---------------------------------------------------------------------------------------


def others() -> list[str]:
    return [name for name in TRAINED_LONGER if name != METHOD]


def by_kind(evidence: Evidence, verdicts: Mapping[str, Verdict], *, sized: bool = False) -> str:
    """ "shown to be behind under FGSM 0.1 (−7.6), ...; open under benign"; "no record" without any."""
    parts = []
    for status, words in KINDS.items():
        names = [
            named(evidence, attack) + (f" ({signed(f'{verdict.ours:+.1f}')})" if sized else "")
            for attack, verdict in verdicts.items()
            if verdict.status == status
        ]
        if names:
            parts.append(f"{words} under {listed(names)}")
    return "; ".join(parts) or "without a record"


def named(evidence: Evidence, attack: str) -> str:
    """ "FGSM 0.01": what the attack is called in sentences."""
    return briefly(evidence.comparison(LONG_56))[attack].replace(" +1", "")  # of the restart


def listed(names: Sequence[str] | Iterable[str]) -> str:
    """ "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _without_seed(verdict: Verdict) -> dict[str, str]:
    return {key: value for key, value in verdict.claim.ours.items() if key != "seed"}
