"""Workers killed at random: the study ends with its trials, each trained as if nothing had happened.

The long ones are `benchmarks/chaos.py`.
"""

from __future__ import annotations

from pathlib import Path

from chaos import KILL, Chaos, Plan
from chaos_checks import complaints, lost, unlike_their_twins

PLAN = Plan(
    workers=3,
    trials=8,
    epochs=8,
    blows_in_all=5,
    step_seconds=0.02,
    tempo={"search.pace:CHECKPOINT_SECONDS": 0.2},
    limit_seconds=120,
)


def test_workers_killed_at_any_moment_lose_no_trial_and_change_no_curve(storage_url: str, tmp_path: Path) -> None:
    chaos = Chaos(storage_url, tmp_path, PLAN)
    report = chaos.run()
    assert report.blows[KILL] == PLAN.blows_in_all
    assert "\n".join(complaints(chaos)) == ""
    assert "\n".join(unlike_their_twins(chaos)) == ""
    assert lost(chaos).epochs > 0, "no death cost anything: were they in time?"
