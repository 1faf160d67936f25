"""Tables of results, as data frames and as text: one row per method, every number from a record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

import pandas as pd

from gkp.study.analysis import claims, verdict
from gkp.study.analysis.compared import Comparison
from gkp.study.analysis.comparison import marked, marks_text, mean_size
from gkp.study.analysis.labels import BENIGN, CONTROL, method_title
from gkp.study.analysis.method import costs

COUNT = re.compile(r"\d+(?= of \d+ images)")  # in a sentence of a self-check


def summary(comparison: Comparison, attacks: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per method and checkpoint rule: costs, then accuracy in percent, by default under every attack.

    One seed: ± half the 95 % Wilson interval. Several seeds: mean ± standard deviation over seeds.
    """
    points, attacks = comparison.points, set(comparison.titles if attacks is None else attacks)
    order = {label: place for place, label in enumerate(_label_order(comparison))}
    rows = []
    for label, rule in sorted({key[:2] for key in points}, key=lambda key: (order[key[0]], key[1])):
        macs, params = mean_size(comparison, label)
        row = {"method": marked(comparison, label), "checkpoint": rule}
        row |= {"MACs (M)": f"{macs:.2f}", "params (M)": f"{params:.3f}"}
        for name, title in comparison.titles.items():
            if name in attacks:
                point = points.get((label, rule, name))
                row[title] = point.text if point else "–"
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.drop(columns="checkpoint") if {key[1] for key in points} == {"last"} else frame


def _label_order(comparison: Comparison) -> list[str]:
    """Baseline and controls first, then methods by their clean accuracy, the best first."""
    first = ("baseline", "unpruned", "unpruned + fine-tune", "random")
    clean: dict[str, list[float]] = {}
    for (label, _, attack), point in comparison.points.items():
        clean.setdefault(label, [])
        if attack == BENIGN:
            clean[label] += [point.mean] * point.seeds
    place = {name: (0, float(position), name) for position, name in enumerate(first)}
    return sorted(clean, key=lambda name: place.get(name, (1, -fmean(clean[name] or [0.0]), name)))


def claims_table(judged: Sequence[claims.Verdict]) -> pd.DataFrame:
    """The verdicts as a table: what is claimed, expected, ours, tolerance with its reason."""
    return pd.DataFrame(
        {
            "": verdict.status,
            "id": verdict.claim.id,
            "claim": verdict.claim.statement,
            "expected": f"{verdict.claim.wanted} {verdict.claim.unit}",
            "tolerance": f"± {verdict.claim.tolerance:g}" if verdict.claim.tolerance else "none",
            "ours": verdict.ours_text,
            "because": verdict.claim.explanation or verdict.claim.why,
        }
        for verdict in judged
    )


def claims_text(judged: Sequence[claims.Verdict]) -> str:
    """A sentence: how many claims hold, miss and are open, and how many of the latter were expected."""
    count = {status: sum(v.status == status for v in judged) for status in ("OK", "MISS", "OPEN", "MISSING")}
    known = sum(v.status in ("MISS", "OPEN") and v.as_expected for v in judged)
    return (
        f"**{count['OK']} of {len(judged)} claims hold, {count['MISS']} miss, {count['OPEN']} are open** "
        f"({known} of these known and explained), {count['MISSING']} without a record."
    )


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; text stays text."""
    return frame.to_markdown(index=False, disable_numparse=True, stralign="left") + "\n"


# ---- what columns and numbers mean ---------------------------------------------------------------


def footnote(comparison: Comparison, attacks: Iterable[str] | None = None) -> str:
    """What the table's numbers are counted on, and what its words mean."""
    titles = comparison.titles
    if not titles:
        return "No records yet."
    attacks = set(titles if attacks is None else attacks)
    most: dict[str, int] = {}
    for metric in (metric for record in comparison for metric in record.measured()):
        most[metric.attack.name] = max(metric.n, most.get(metric.attack.name, 0))
    sizes: dict[int, list[str]] = {}
    for name, title in titles.items():
        if name in attacks:
            sizes.setdefault(most[name], []).append(title)
    counted = "; ".join(f"{n:,} images: {', '.join(sizes[n])}" for n in sorted(sizes, reverse=True))
    data = next(record.provenance.data for record in comparison if record.provenance.data)
    whole = "" if data.images == data.official_size else f" of the publisher's {data.official_size:,}"
    spread = (
        "half the 95 % Wilson interval"
        if len({record.run.seed for record in comparison}) == 1
        else "standard deviation over seeds (one seed: half the interval)"
    )
    return (
        f"Accuracy in % ± {spread}. Test set: {data.images:,}{whole} images. {counted.removesuffix('.')}. "
        f'"norm.": eps counts after normalisation, the paper\'s unit ({normalised_unit(comparison)}); '
        '"pred.": the attack uses predicted labels, as the released code does. '
        "MACs and parameters in the usual convention." + marks_text(comparison)
    )


def normalised_unit(comparison: Comparison) -> str:
    """How large eps 0.01 is in pixels: it counts in the standard deviations that a network normalises by."""
    if {record.run.weights for record in comparison} == {"akamaster"}:
        return "0.01 is about 0.6/255 for these networks, which normalise by ImageNet's standard deviations"
    return "0.01 is about 0.5/255"


def self_checks(comparison: Comparison) -> str:
    """What the evaluations found wrong with themselves, one line for all networks alike; "" when nothing.

    Sentences that differ in their count of images alone are one line, with the least and the most.
    """
    by_sentence: dict[str, tuple[list[int], list[str]]] = {}
    for record in comparison:
        for rule, kept in record.kept.items():
            for sentence in kept.self_check:
                counts, whose = by_sentence.setdefault(COUNT.sub("{}", sentence), ([], []))
                counts += map(int, COUNT.findall(sentence))
                whose.append(f"{record.label}, seed {record.run.seed}, {rule}")
    networks = sum(len(record.kept) for record in comparison)
    lines = []
    for sentence, (counts, whose) in by_sentence.items():
        span = " to ".join(dict.fromkeys(map(str, (min(counts), max(counts))))) if counts else ""
        who = f"all {networks} networks" if len(whose) == networks else "; ".join(whose)
        lines.append(f"- {sentence.replace('{}', span)} ({who})\n")
    return f"\nThe evaluations about themselves:\n\n{''.join(lines)}" if lines else ""


# ---- the abstract --------------------------------------------------------------------------------


def abstract(findings: verdict.Findings) -> pd.DataFrame:
    """One row per statement of the paper's abstract: text for, against, how sure, and the notebook."""
    paper = _sure(findings, verdict.PAPER, findings.sound)
    rows = [
        (*_clean(findings), _sure(findings, BENIGN), "02_fragility"),
        (*_fragile(findings), paper, "02_fragility"),
        (*_milder(findings), paper + _autoattacked(findings), "02_fragility"),
        (*_gained(findings), paper, "02_fragility"),
        (*_free(findings.price), "one machine", "04_cost"),
        (*_smooth(findings), "03_ablations"),
    ]
    return pd.DataFrame(rows, columns=["the paper says", "for", "against", "how sure", "notebook"])


def _clean(findings: verdict.Findings) -> tuple[str, ...]:
    frame = findings.clean
    worse, best = frame[frame.verdict == "worse"].difference, frame.iloc[-1]
    span = f", {-worse.iloc[-1]:.1f} to {-worse.iloc[0]:.1f} points" if len(worse) else ""
    return (
        "structured pruning keeps an acceptable clean accuracy",
        f"{len(frame) - len(worse)} of {len(frame)} methods come without a significant loss; nearest to "
        f"{CONTROL}: {method_title(best.method)}, {best.difference:+.1f} points",
        f"{len(worse)} of {len(frame)} lose significantly{span}",
    )


def _fragile(findings: verdict.Findings) -> tuple[str, ...]:
    def counted(control: str) -> str:
        tests = findings.fragile[control].items()
        return "; ".join(
            f"{findings.titles[attack]}: {sum(t.verdict == 'worse')} of {len(t)} less robust, "
            f"{sum(t.verdict == 'better')} more"
            for attack, t in tests
        )

    return (
        "but lose robustness",
        f"than {CONTROL}: {counted(CONTROL)}",
        f"than the unpruned network as it was, with which the paper compares: {counted('unpruned')}",
    )


def _milder(findings: verdict.Findings) -> tuple[str, ...]:
    def listed(word: str) -> str:
        texts = []
        for attack, tests in findings.filters.items():
            names = [method_title(name) for name in tests[tests.verdict == word].method]
            who = f" ({', '.join(names)})" if names else ""
            texts.append(f"{findings.titles[attack]}: {len(names)} of {len(tests)}{who}")
        return "; ".join(texts)

    return (
        "SR-GKP loses less than filter pruning",
        f"of the methods that remove filters or channels, less robust than SR-GKP: {listed('worse')}",
        f"more robust: {listed('better')}",
    )


def _gained(findings: verdict.Findings) -> tuple[str, ...]:
    """Significant gains against significant losses; what is neither stands with the losses, as no gain."""
    sides: dict[str, list[str]] = {"better": [], "worse": [], "not significant": []}
    for (control, attack), row in findings.gains.items():
        sides[row.verdict].append(f"{points_text(row.difference)} {findings.titles[attack]} over {control}")
    gained, lost, unclear = ("; ".join(texts) or "none" for texts in sides.values())
    return (
        "SR-GKP gains robustness over the unpruned network",
        f"significant: {gained}",
        f"significant: {lost}; not significant: {unclear}",
    )


def _free(price: verdict.Price) -> tuple[str, ...]:
    times = ", ".join(
        f"{ratio:.1f} times at {batch} ({network})" for (network, batch), ratio in price.slower.items()
    )
    slower = f"as grouped convolutions it takes {times} the unpruned network's time on {price.device}"
    share = ""
    if price.training_seconds:
        percent = 100 * price.seconds / price.training_seconds
        part = f"{percent:.1f} %" if percent >= 0.05 else "less than 0.1 %"
        share = f", {part} of a fine-tuning of {price.epochs} epochs"
    return (
        "for free: in one shot, from the weights alone",
        f"{costs.seconds_text(price.seconds)} and {price.images} images{share}",
        slower if times else "its latency has no record yet",
    )


def _smooth(findings: verdict.Findings) -> tuple[str, ...]:
    statement, smooth = "because it keeps smooth kernels", findings.smooth
    if smooth is None:
        return statement, "no record yet", "no record yet", "–"
    texts = [
        f"{points_text(row.difference)} points {findings.titles[attack]} "
        f"({'significant' if row.verdict in ('better', 'worse') else 'not significant'})"
        for attack, row in smooth.smoothest.items()
    ]
    instead = f"; keeping the smoothest kernels instead of its own brings {', '.join(texts)}" if texts else ""
    return (
        statement,
        f"it deals filters to groups by their smoothness{instead}",
        f"whatever the weight of smoothness in the search, {smooth.same} of {smooth.groups} groups or more "
        f"keep the same set; kept sets are on average rougher than {smooth.rougher:.1f} % of all sets",
        f"{smooth.groups} groups of {smooth.networks} published networks, no training",
    )


def points_text(points: float) -> str:
    """ "+1.2"; what rounds to zero has no sign."""
    return f"{points:+.1f}" if round(points, 1) else "0.0"


def _sure(findings: verdict.Findings, *attacks: str) -> str:
    """ "9,979 images, 1 seed, 4 epochs; McNemar's test, Holm-corrected"."""
    sizes = sorted({findings.images[attack] for attack in attacks}, reverse=True)
    images = " and ".join(f"{n:,}" for n in sizes)
    return f"{images} images, {findings.seeds}, {findings.epochs} epochs; McNemar's test, Holm-corrected"


def _autoattacked(findings: verdict.Findings) -> str:
    """On how many images AutoAttack ran, as the end of a sentence; "" where it did not."""
    n = findings.images.get(verdict.STRONGEST)
    return f"; AutoAttack: {n:,} images" if verdict.STRONGEST in findings.filters else ""
