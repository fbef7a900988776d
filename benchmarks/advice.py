"""How often each rule of advice speaks where it must, and where it must not, on made studies.

    python -m benchmarks.advice --studies 50

`tests/made_studies.py` makes studies from a formula, drawn at random and by TPE, pruned against the median: what is
true of them is known. Each row is one kind of study; the first figure is how often the rule spoke that must speak
there, the others how often rules did that must not. A study as it should be, and one in which nothing matters, must
hear nothing of its space.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from made_studies import USUAL, Made, bowl, study_of, trials_of

from benchmarks.measured import option_parser, print_header
from search.advice import advise

Recipe = Mapping[str, Any]

OPTIMIZER, RATE, L2, BATCH, SCHEDULE, WARMUP, WIDTH, DROPOUT = range(8)
# What can be wrong about a space and how long is trained; the others are about the study's size.
CLAIMS = ("edges", "lost", "decides_nothing", "slow", "divergence", "overfitting", "too_short", "too_long", "pruning")
PLAIN = Made()


def instead(index: int, cost: Callable[[Recipe], float]) -> tuple[Callable[[Recipe], float], ...]:
    """The usual costs of knobs, one of them replaced."""
    return (*USUAL[:index], cost, *USUAL[index + 1 :])


# A name, the rules that may speak (the first must), and how the study is made.
KINDS: tuple[tuple[str, tuple[str, ...], Made], ...] = (
    ("as it should be, 60 trials", (), PLAIN),
    ("as it should be, 200 trials", (), replace(PLAIN, trials=200)),
    ("nothing matters, 60 trials", (), replace(PLAIN, costs=(), seed_noise=0.01)),
    ("nothing matters, 200 trials", ("decides_nothing",), replace(PLAIN, costs=(), seed_noise=0.01, trials=200)),
    ("rate best beyond the range", ("edges",), replace(PLAIN, costs=instead(RATE, bowl("lr_multiple", 100.0, 0.06)))),
    ("rate best near the end", ("edges",), replace(PLAIN, costs=instead(RATE, bowl("lr_multiple", 18.0, 0.06)))),
    ("width best beyond the range", ("edges",), replace(PLAIN, costs=instead(WIDTH, bowl("width", 300.0, 0.12)))),
    (
        "one optimizer is hopeless",
        ("lost",),
        replace(PLAIN, costs=instead(OPTIMIZER, lambda r: 0.2 * (r["optimizer"] == "sgd"))),
    ),
    (
        "one optimizer is a little worse",
        (),
        replace(PLAIN, costs=instead(OPTIMIZER, lambda r: 0.01 * (r["optimizer"] == "sgd"))),
    ),
    (
        "two knobs decide nothing, 150 trials",
        ("decides_nothing",),
        replace(PLAIN, costs=USUAL[:WARMUP] + USUAL[WIDTH:DROPOUT], trials=150),
    ),
    (
        "small batches are slow, no better",
        ("slow", "lost", "edges"),
        replace(
            PLAIN,
            costs=instead(BATCH, lambda r: 0.01 * (r["batch_size"] == 16)),
            seconds=lambda r: 64 / r["batch_size"],
        ),
    ),
    (
        "small batches are slow, and better",
        ("edges",),
        replace(
            PLAIN,
            costs=instead(BATCH, lambda r: 0.02 * math.log2(r["batch_size"] / 16)),
            seconds=lambda r: 64 / r["batch_size"],
        ),
    ),
    (
        "high rates diverge, next to the best",
        ("divergence", "edges"),
        replace(PLAIN, costs=instead(RATE, bowl("lr_multiple", 8.0, 0.06)), diverges=lambda r: r["lr_multiple"] > 6),
    ),
    (
        "high rates diverge, far from the best",
        ("divergence",),
        replace(PLAIN, costs=instead(RATE, bowl("lr_multiple", 0.3, 0.06)), diverges=lambda r: r["lr_multiple"] > 6),
    ),
    ("cut short", ("too_short",), replace(PLAIN, tau=12.0)),
    ("far too long", ("too_long",), replace(PLAIN, tau=0.4)),
    (
        "over-fitted from half of the run on",
        ("overfitting",),
        replace(PLAIN, tau=1.0, bend=lambda epoch: 0.01 * max(0, epoch - 6)),
    ),
    ("never pruned, though ranks show early", ("pruning",), replace(PLAIN, pruned=False)),
)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--studies", type=int, default=50, metavar="N", help="How many of each kind.")
    asked = parser.parse_args()
    print_header("optuna", "scipy")
    print(f"n = {asked.studies} studies of each kind and sampler, 60 trials where nothing is said; share that heard it")
    print(f"{'study':<40}{'sampler':<9}{'must':<22}must not")
    for name, may, made in KINDS:
        for sampler in ("random", "tpe"):
            print(
                f"{name:<40}{sampler:<9}{'  '.join(_figures(replace(made, sampler=sampler), may, asked.studies))}",
                flush=True,
            )


def _figures(made: Made, may: tuple[str, ...], studies: int) -> Iterator[str]:
    spoke: Counter[str] = Counter()
    study = study_of(made, sampler="tpe", pruner="median" if made.pruned else "none")
    for seed in range(studies):
        spoke.update({finding.rule for finding in advise(study, trials_of(made, seed)).findings})
    must = f"{may[0]} {spoke[may[0]] / studies:.0%}" if may else "-"
    yield f"{must:<20}"
    wrong = {rule: spoke[rule] / studies for rule in CLAIMS if rule not in may and spoke[rule]}
    yield ", ".join(f"{rule} {share:.0%}" for rule, share in wrong.items()) or "-"


if __name__ == "__main__":
    main()
