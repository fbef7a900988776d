"""The most memory that a trial had in use: measured from its start, on record with its epochs, also of an adopter's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reporter_bench import Bench, bench_on, report
from studies import engines_disposed, rows

from search.peak_memory import PeakMemory

MIB = 2**20
CPU = torch.device("cpu")
PEAKS = "SELECT value_json FROM trial_user_attributes WHERE key = 'peak_memory'"


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Iterator[Bench]:
    with engines_disposed():
        yield bench_on(sqlite_url, tmp_path / "files")


def on_record(bench: Bench) -> list[int]:
    return [json.loads(text) for (text,) in rows(bench.url, PEAKS)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process count anew")
def test_a_process_counts_anew_with_each_trial() -> None:
    before = PeakMemory(CPU).bytes()
    assert before is not None
    during = PeakMemory(CPU)
    large = torch.ones(64 * MIB // 4)
    del large
    highest = during.bytes()
    assert highest is not None
    assert highest >= before + 60 * MIB
    after = PeakMemory(CPU).bytes()
    assert after is not None
    assert after < highest - 30 * MIB


def test_where_the_system_does_not_count_anew_nothing_is_said(tmp_path: Path) -> None:
    assert PeakMemory(CPU, clear_refs=tmp_path / "missing" / "clear_refs").bytes() is None
    assert PeakMemory(CPU, tmp_path / "clear_refs", tmp_path / "missing").bytes() is None
    (tmp_path / "status").write_text("Name: python\nVmRSS: 10 kB\n")
    assert PeakMemory(CPU, tmp_path / "clear_refs", tmp_path / "status").bytes() is None


def test_what_has_grown_is_on_record_with_its_epoch(bench: Bench) -> None:
    peaks = iter([100 * MIB, 101 * MIB, 200 * MIB, None])
    to = bench.reporter(memory=lambda: next(peaks))
    seen = []
    for epoch in (1, 2, 3, 4):
        report(to, epoch)
        seen += on_record(bench)
    # A hundredth more is not worth a statement, and once known it is not forgotten.
    assert seen == [100 * MIB, 100 * MIB, 200 * MIB, 200 * MIB]


def test_at_its_end_a_trial_has_the_very_highest(bench: Bench) -> None:
    peaks = iter([100 * MIB, 101 * MIB])
    to = bench.reporter(memory=lambda: next(peaks))
    report(to, 1)
    assert to.peak_memory() == {"peak_memory": 101 * MIB}


def test_an_adopter_that_needs_less_leaves_what_is_on_record(bench: Bench) -> None:
    report(bench.reporter(memory=lambda: 100 * MIB), 1)
    later = bench.adopted().reporter(memory=lambda: 60 * MIB)
    report(later, 2)
    assert later.peak_memory() == {}
    assert on_record(bench) == [100 * MIB]


def test_an_attribute_of_that_name_that_is_no_number_of_bytes_is_no_peak(bench: Bench) -> None:
    bench.trial.set_user_attr("peak_memory", "3 GB")
    report(bench.reporter(memory=lambda: 100 * MIB), 1)
    assert on_record(bench) == [100 * MIB]
