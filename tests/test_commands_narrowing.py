"""`dialin run --fix --range`: the study that is made searches only that, whoever trains it, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from studies import TINY, Inside, assert_settled, trials, value

WISHES = ("--fix", "optimizer=adam", "--range", "lr=1e-3:1e-1", "--range", "width=5:6", "--fix", "batch_size=20")


def test_every_worker_of_the_study_searches_what_is_left(inside: Inside, either_url: str) -> None:
    said = inside("run", TINY, "--trials", 4, "--workers", 2, "--storage", either_url, "--sampler", "random", *WISHES)
    assert said.status == 0, said.err
    for trial in assert_settled(either_url, "tiny-1", 4):
        assert trial.distributions["lr"] == FloatDistribution(1e-3, 1e-1, log=True)
        assert trial.distributions["width"] == IntDistribution(5, 6)
        assert not {"lr_multiple", "optimizer", "batch_size"} & {*trial.params}
        settings = trial.user_attrs["settings"]
        assert (settings["optimizer"], settings["batch_size"]) == ("adam", 20)
        assert settings["lr"] == trial.params["lr"]
    status = inside("status", "--storage", either_url)
    assert "narrowed to: optimizer=adam, batch_size=20, lr=0.001:0.1, width=5:6\n" in status.out

    resumed = inside("resume", "--trials", "+2", "--objective", TINY, "--workers", 1, "--storage", either_url)
    assert resumed.status == 0, resumed.err
    assert [t.distributions["lr"].high for t in trials(either_url, "tiny-1")] == [0.1] * 6  # type: ignore[attr-defined]


def test_a_fixed_knob_of_the_models_is_in_the_answer(inside: Inside, sqlite_url: str) -> None:
    run = ("run", TINY, "--trials", 1, "--workers", 1, "--storage", sqlite_url)
    assert inside(*run, "--fix", "width=7", "--fix", "momentum=0.95", "--fix", "optimizer=nesterov").status == 0
    [best] = json.loads(inside("best", "--format", "json", "--storage", sqlite_url).out)
    assert best["model"] == {"width": 7}
    assert (best["recipe"]["optimizer"], best["recipe"]["momentum"]) == ("nesterov", 0.95)
    assert value(sqlite_url, "SELECT count(*) FROM trial_params WHERE param_name = 'one_minus_momentum'") == 0


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (("--fix", "widht=7"), "nothing is called 'widht' here: did you mean width?"),
        (("--fix", "width=20"), "width cannot be 20: it is 4 .. 8"),
        (("--fix", "optimizer=adam,adamw"), "--range optimizer=adam,adamw chooses among them"),
        (("--range", "lr=1:0.1"), "the range lr=1:0.1 is out of order: write 0.1:1"),
        (("--fix", "optimizer=adm"), "optimizer cannot be adm: it is one of sgd, momentum"),
        (("--fix", "momentum=0.9", "--fix", "optimizer=adam"), "momentum is only for optimizer momentum, nesterov"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_made(
    inside: Inside, tmp_path: Path, wishes: tuple[str, ...], said: str
) -> None:
    ended = inside("run", TINY, *wishes)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert said in ended.err
    assert [*tmp_path.iterdir()] == []
