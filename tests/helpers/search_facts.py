"""A small fact of what each choice of the search changes."""

from gkp.study.facts.ablations import ALL, REFERENCE


def numbers(shared, same=4):
    found = {"layers": 2, "groups": 8, "same_groups": same, "same_percent": 50.0, "shared_percent": shared}
    values = {"eq3_percent": 101.0, "frozen_percent": 99.0}
    return found | (values if same is not None else dict.fromkeys(values))


def entry(shared, same=4):
    per = {"a": numbers(shared - 5, same), "b": numbers(shared + 5, same), ALL: numbers(shared, same)}
    return {"widest_layer": 64, "networks": per}


FACTS = {
    "searches": {REFERENCE: entry(95, 8), "alpha 0": entry(90), "4 groups": entry(70, None)},
    "smoother": {
        "a": {
            "groups": 8,
            "mean_percent": 99.5,
            "median_percent": 100.0,
            "least_percent": 90.0,
            "by_channels": {"64": 100.0, "16": 99.0},
        }
    },
    "sets": 20000,
}
