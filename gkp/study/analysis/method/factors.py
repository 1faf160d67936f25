"""Which choice of grouped kernel pruning carries how much: the crossed runs of the profiles' suite.

Three factors: the profile (which stage loses how much), the selection (how kernels are chosen) and which
convolutions lose kernels. Accuracies are in percent, differences in points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from gkp.study.analysis.compared import Comparison, stacked
from gkp.study.analysis.comparison import gain
from gkp.study.analysis.method import anova
from gkp.study.analysis.paired import alike, chance, judged
from gkp.study.facts.explanations import FINALISTS
from gkp.study.runs import suites
from gkp.study.runs.record import Record
from gkp.study.runs.run import GROUPS, Run
from gkp.study.runs.suites import stages
from gkp.utils.stats import paired_difference

PUBLISHED = {"profile": "flat", "selection": "beam", "which": "all"}  # SR-GKP's own level of each factor
OWN: dict[str, dict[str, str]] = {"sr-gkp": {}, "sr-gkp-b": {"profile": stages.EARLY}}
OWN |= {method: {"selection": selection} for selection, method in stages.SELECTING.items()}
FILTERS = {"l1-b": stages.EARLY}  # which prune filters by a profile of their own
BEST = "sr-gkp-b"


def levels(run: Run) -> dict[str, str] | None:
    """The run's level of each factor; None for another method, and where something else is changed too."""
    options = {"selection" if key == "strategy" else key: value for key, value in run.options}
    if run.method not in OWN or run.groups != GROUPS or options.keys() - PUBLISHED.keys():
        return None
    return PUBLISHED | OWN[run.method] | options


def crossed(comparison: Comparison) -> list[tuple[dict[str, str], Record]]:
    """The trained records that have a level of each factor, with these levels."""
    return [(by_factor, record) for record in comparison.trained if (by_factor := levels(record.run))]


def table(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """label, the factors, attack, mean, low, high, seeds, n: a row per network and attack, as in `Point`.

    Networks that are no grouped kernels have "–" as factors, and filters a profile.
    """
    rows, runs = [], {record.label: record for record in comparison.compared}
    for label in comparison.labels:
        by_factor = levels(runs[label].run) or _of_filters(runs[label].run)
        for name in names:
            if point := comparison.points.get((label, "last", name)):
                rows.append({"label": label, **by_factor, "attack": name, **point._asdict()})
    return pd.DataFrame(rows, columns=["label", *PUBLISHED, "attack", "mean", "low", "high", "seeds", "n"])


def _of_filters(run: Run) -> dict[str, str]:
    profile = dict(run.options).get("profile", FILTERS.get(run.method, PUBLISHED["profile"]))
    return dict.fromkeys(PUBLISHED, "–") | ({"profile": profile} if run.prunes else {})


def table_text(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """`table` with a row per network and "91.98 ± 0.53" per attack; the best by the first attack first."""
    frame = table(comparison, names)
    if frame.empty:
        return frame
    first = frame[frame.attack == names[0]].sort_values("mean", ascending=False)
    rows = first[["label", *PUBLISHED, "seeds"]].set_index("label")
    for name in names:
        part = frame[frame.attack == name].set_index("label")
        texts = {row.Index: f"{row.mean:.2f} ± {(row.high - row.low) / 2:.2f}" for row in part.itertuples()}
        rows[comparison.titles.get(name, name)] = pd.Series(texts, dtype=object)
    return rows.fillna("–").reset_index()


# ---- what a factor carries -----------------------------------------------------------------------


def variance(comparison: Comparison, attack: str) -> pd.DataFrame:
    """`anova.variance` of the accuracies of all crossed runs under the attack.

    ValueError where the runs do not tell the factors apart.
    """
    return anova.variance(*_accuracies(comparison, attack))


def separable(comparison: Comparison, attack: str) -> bool:
    """Whether the networks under the attack are enough, and different enough, for `variance`."""
    return anova.separable(*_accuracies(comparison, attack))


def _accuracies(comparison: Comparison, attack: str) -> tuple[pd.DataFrame, list[str]]:
    """The factors and the accuracy (percent) of the crossed networks, and the factors that vary in them."""
    measured = [(by_factor, record.metrics().get(attack)) for by_factor, record in crossed(comparison)]
    frame = pd.DataFrame(
        {**by_factor, "accuracy": 100 * metric.accuracy} for by_factor, metric in measured if metric
    )
    return frame, [factor for factor in PUBLISHED if len(frame) and frame[factor].nunique() > 1]


def contrasts(comparison: Comparison, names: Sequence[str]) -> pd.DataFrame:
    """Every level against SR-GKP's own, in networks that are alike in the other factors and the seed.

    factor, level, attack, networks (pairs), n, difference (points, positive: better than SR-GKP's own), low,
    high (95 % over images), p, verdict: McNemar's test with images as clusters, Holm over all rows.
    """
    cells: dict[tuple[str, ...], Record] = {}
    for by_factor, record in crossed(comparison):
        cells[*by_factor.values(), str(record.run.seed)] = record
    rows = []
    for place, (factor, reference) in enumerate(PUBLISHED.items()):
        for level in sorted({key[place] for key in cells} - {reference}):
            pairs = [
                (record, cells[other])
                for key, record in cells.items()
                if key[place] == level and (other := (*key[:place], reference, *key[place + 1 :])) in cells
            ]
            for name in names:
                a, b = _answers(pairs, name)
                if len(a):
                    rows.append({"factor": factor, "level": level, "attack": name} | tested(a, b))
    return corrected(rows, ["factor", "level", "attack"])


def _answers(pairs: Iterable[tuple[Record, Record]], attack: str) -> tuple[Tensor, Tensor]:
    """bool (S, N) each: the right images of the pairs of which both met the attack."""
    metrics = [(first.metrics().get(attack), second.metrics().get(attack)) for first, second in pairs]
    return stacked([(first.right, second.right) for first, second in metrics if first and second])


def tested(a: Tensor, b: Tensor) -> dict[str, Any]:
    """networks, n, difference, low, high, p of paired right images, bool (S, N) each."""
    low, high = paired_difference(a, b)
    counts = {"networks": len(a), "n": a.shape[1]}
    return counts | {"difference": gain(a, b), "low": 100 * low, "high": 100 * high, "p": chance(a, b)}


def corrected(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    """The rows with p by Holm over all of them, and in words what that shows."""
    return judged(pd.DataFrame(rows, columns=[*keys, "networks", "n", "difference", "low", "high", "p"]))


# ---- the finalists -------------------------------------------------------------------------------


def finalists(comparison: Comparison, names: Sequence[str], label: str = BEST) -> pd.DataFrame:
    """One network against every other one that is trained with several seeds, under several attacks.

    against, attack and the columns of `contrasts`, seeds paired; Holm over all rows, that is the family of
    all these networks and attacks.
    """
    others = dict.fromkeys(run.label for run in suites.get(FINALISTS).runs if run.label != label)
    rows = []
    for other in others:
        for name in names:
            a, b = alike(comparison, (label, name), (other, name))
            if len(a):
                rows.append({"against": other, "attack": name} | tested(a, b))
    return corrected(rows, ["against", "attack"])


def front(comparison: Comparison, clean: str, robust: str) -> pd.DataFrame:
    """label, the factors, clean, robust (percent), best: whether no other network has more of both.

    And clean_low, clean_high, robust_low, robust_high: those of its lowest and of its highest training.
    """
    means = table(comparison, [clean, robust]).pivot(
        index=["label", *PUBLISHED], columns="attack", values="mean"
    )
    means = means.dropna().reset_index()
    means = means.rename(columns={clean: "clean", robust: "robust"}).rename_axis(columns=None)
    beaten = [
        ((means.clean >= row.clean) & (means.robust >= row.robust)
         & ((means.clean > row.clean) | (means.robust > row.robust))).any()
        for row in means.itertuples()
    ]  # fmt: skip
    return means.assign(best=[not lost for lost in beaten]).merge(_spread(comparison, clean, robust))


def _spread(comparison: Comparison, clean: str, robust: str) -> pd.DataFrame:
    """label and the lowest and highest accuracies (percent) among its trainings, or its one evaluation's."""
    rows = [
        {
            "label": record.label,
            "clean": 100 * metrics[clean].accuracy,
            "robust": 100 * metrics[robust].accuracy,
        }
        for record in comparison.compared
        if {clean, robust} <= (metrics := record.metrics()).keys()
    ]
    ends = pd.DataFrame(rows, columns=["label", "clean", "robust"]).groupby("label").agg(["min", "max"])
    ends.columns = [f"{name}_{'low' if end == 'min' else 'high'}" for name, end in ends.columns]
    return ends.reset_index()


# ---- why -----------------------------------------------------------------------------------------


def why(comparison: Comparison, networks: Sequence[Mapping[str, Any]], attack: str) -> pd.DataFrame:
    """The measurements of `gkp.study.facts.explanations` beside accuracy under the attack.

    networks: the fact's entry of that name. label, seed, clean and robust (percent), and the numbers.
    """
    records = {record.hash: record for record in comparison.trained}
    rows = []
    for entry in networks:
        record = records.get(entry["hash"])
        metrics = record.metrics() if record else {}
        if attack in metrics and "benign" in metrics:
            numbers = {name: value for name, value in entry.items() if isinstance(value, float)}
            accuracies = {"clean": metrics["benign"].accuracy, "robust": metrics[attack].accuracy}
            percent = {name: 100 * value for name, value in accuracies.items()}
            rows.append({"label": entry["label"], "seed": entry["seed"]} | percent | numbers)
    return pd.DataFrame(rows)


def why_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each measurement of `why` with clean and with robust accuracy.

    Over networks, each with the mean of its seeds.
    """
    numbers = frame.drop(columns="seed").groupby("label").mean()
    correlation = numbers.rank().corr()[["clean", "robust"]].drop(index=["clean", "robust"])
    return correlation.rename_axis("measurement").reset_index().assign(networks=len(numbers))
