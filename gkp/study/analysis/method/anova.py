"""Analysis of variance: which single factor of crossed networks carries how much of their accuracies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd


def variance(frame: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Type II analysis of variance, without interactions, of a frame's column `accuracy` (percent).

    factor, levels, share (percent of the total sum of squares, beyond what the other factors carry), F, p,
    best, worst, points (between these two, the other factors alike), low, high: the 95 % interval of that
    difference, simultaneous for all pairs of levels of the factor (Tukey). A last row, "rest", has what
    single factors do not carry: their interactions and the chance of a training. The shares add up to 100
    where every level meets every other one equally often. ValueError where the factors are not `separable`.
    """
    from scipy.stats import studentized_range  # slow to import
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    if not separable(frame, factors):
        raise ValueError(f"{len(frame)} crossed networks: too few to compare factors; run the suite")
    model = ols("accuracy ~ " + " + ".join(f"C({factor})" for factor in factors), frame).fit()
    sums = anova_lm(model, typ=2)
    rows = []
    for factor in factors:
        names = sorted(frame[factor].unique())
        terms = {name: f"C({factor})[T.{name}]" for name in names[1:]}  # the first is the model's zero
        effect = {name: float(model.params[terms[name]]) if name in terms else 0.0 for name in names}
        best, worst = max(names, key=effect.__getitem__), min(names, key=effect.__getitem__)
        weights = pd.Series(0.0, index=model.params.index)
        for name, sign in ((best, 1), (worst, -1)):
            if name in terms:
                weights[terms[name]] += sign
        error = float(weights @ model.cov_params() @ weights) ** 0.5
        half = float(studentized_range.ppf(0.95, len(names), model.df_resid)) * error / 2**0.5
        points, term = effect[best] - effect[worst], sums.loc[f"C({factor})"]
        row = {"factor": factor, "levels": len(names), "share": term["sum_sq"], "F": term["F"]}
        row |= {"p": term["PR(>F)"], "best": best, "worst": worst}
        rows.append(row | {"points": points, "low": points - half, "high": points + half})
    rest = {"factor": "rest", "share": sums.loc["Residual", "sum_sq"]}
    result = pd.DataFrame([*rows, rest])
    result["share"] *= 100 / ((frame.accuracy - frame.accuracy.mean()) ** 2).sum()
    return result


def separable(frame: pd.DataFrame, factors: Sequence[str]) -> bool:
    """Whether these networks are enough, and different enough, for `variance`.

    Factors must be crossed, each pair of them: two levels of one, each with the same two levels of the other.
    """
    if not factors or not all(_crossed(frame, *pair) for pair in itertools.combinations(factors, 2)):
        return False
    design = pd.get_dummies(frame[list(factors)], drop_first=True).assign(constant=1).to_numpy(float)
    return bool(np.linalg.matrix_rank(design) == design.shape[1] < len(frame) - 1)


def _crossed(frame: pd.DataFrame, factor: str, other: str) -> bool:
    """Whether two levels of `factor` meet the same two levels of `other`."""
    met = frame.groupby(factor)[other].agg(set)
    return any(len(a & b) > 1 for a, b in itertools.combinations(met, 2))


def text(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of `variance` in words: factor, share of the variance, best against worst, points."""
    rows = []
    for row in frame.to_dict("records"):
        words = {"factor": row["factor"].replace("_", "-"), "share of the variance": f"{row['share']:.0f} %"}
        if row["factor"] != "rest":
            words["best against worst"] = f"{row['best']} against {row['worst']}"
            words["points"] = f"{row['points']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
        rows.append(words)
    return rows
