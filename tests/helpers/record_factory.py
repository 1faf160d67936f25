"""Small records for tests, as a run would write them."""

from dataclasses import asdict

import torch

from gkp.attacks import Attack
from gkp.attacks.outcome import pack_bits
from gkp.study.runs.run import VERSION, Run
from gkp.study.runs.store import run_config

RUN = Run("digits", "resnet8", "l1", weights="resnet8", rate=0.4375)


def make_record(run: Run = RUN, suite: str = "small", correct: int = 90) -> dict:
    """A record of one attack on 100 images."""
    metric = {
        "correct": correct,
        "n": 100,
        "asked_n": None,
        "accuracy": correct / 100,
        "low": 0.8,
        "high": 0.95,
    }
    metric |= {
        "seconds": 0.1,
        "bits": pack_bits(torch.arange(100) < correct),
        "attack": asdict(Attack("none")),
    }
    counted = {"usual": {"macs": 1e6, "params": 2e4}, "paper": {"macs": 1.1e6, "params": 2e4}}
    return {
        "version": VERSION,
        "hash": run.hash,
        "suite": suite,
        "stem": run.stem,
        "label": run.label,
        "pruned": run.prunes,
        "config": run_config(run),
        "cost": {"before": counted, "after": counted, "macs_ratio": 1.0},
        "pruning": {"rate": 0.4, "seconds": 0.5, "data_images": 0},
        "checkpoints": {
            "last": {
                "epoch": 2,
                "sha256": "ab",
                "file": None,
                "metrics": {"benign": metric},
                "self_check": [],
            }
        },
        "evaluations": [],
        "provenance": {"commit": None},
    }
