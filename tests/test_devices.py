"""Where workers run, planned for machines made up here: tested on the CPU; not measured on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from search import devices
from search.devices import GIB, Gpu, SlotPlan, gpus, plan_slots, print_gpus, usable_cpus
from storage.errors import DialinError, UsageError


def gpu(index: int, used_gib: float = 0.5, total_gib: float = 79.6) -> Gpu:
    total = int(total_gib * GIB)
    return Gpu(index, f"uuid-{index}", "Imagined 1000", total, total - int(used_gib * GIB))


def names(plan: SlotPlan) -> list[str]:
    return [slot.name for slot in plan.slots]


def cpus_of(folder: Path, own: str, files: dict[str, str], affinity: int | None = 8) -> int:
    """What is usable with these files in /sys/fs/cgroup and `own` in /proc/self/cgroup."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_cpus(affinity=affinity, cgroups=folder / "cgroups", own_cgroup=folder / "own")


class TestUsableCpus:
    def test_no_more_than_the_affinity(self, tmp_path: Path) -> None:
        assert cpus_of(tmp_path, "", {}, affinity=3) == 3

    def test_the_affinity_is_asked_of_the_system(self, tmp_path: Path) -> None:
        assert cpus_of(tmp_path, "", {}, affinity=None) == len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(
        ("quota", "cpus"),
        [
            ("270000 100000", 2),
            ("50000 100000", 1),
            ("max 100000", 8),
            ("9900000 100000", 8),
            ("", 8),
            ("x 0", 8),
        ],
    )
    def test_a_cgroup_2_quota_is_rounded_down_to_at_least_one(self, tmp_path: Path, quota: str, cpus: int) -> None:
        assert cpus_of(tmp_path, "0::/\n", {"cpu.max": quota}) == cpus

    def test_a_quota_of_a_cgroup_above_counts(self, tmp_path: Path) -> None:
        files = {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}
        assert cpus_of(tmp_path, "0::/job/step\n", files) == 3

    def test_a_container_whose_path_is_not_mounted_reads_the_root(self, tmp_path: Path) -> None:
        assert cpus_of(tmp_path, "0::/docker/3f2a\n", {"cpu.max": "400000 100000"}) == 4

    @pytest.mark.parametrize(("quota", "cpus"), [("500000", 5), ("-1", 8), ("1000", 1)])
    def test_a_cgroup_1_quota_counts(self, tmp_path: Path, quota: str, cpus: int) -> None:
        own = "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/\n"
        folder = "cpu,cpuacct/job"
        files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
        assert cpus_of(tmp_path, own, files) == cpus


@pytest.fixture(autouse=True)
def no_limit_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """But what a test sets."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


class TestOnACpu:
    def test_without_a_gpu_there_is_one_worker_a_core(self) -> None:
        plan = plan_slots([], 4)
        assert names(plan) == ["cpu/0", "cpu/1", "cpu/2", "cpu/3"]
        assert plan.threads == 1
        assert {slot.key for slot in plan.slots} == {None}

    @pytest.mark.parametrize(("most", "threads"), [("", 3), ("2", 2), ("1,4", 1), ("8", 3), ("0", 3), ("many", 3)])
    def test_fewer_workers_get_more_threads_each_up_to_what_openmp_is_allowed(
        self, most: str, threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", most)
        plan = plan_slots([], 7, workers=2)
        assert (len(plan.slots), plan.threads) == (2, threads)

    def test_more_workers_than_cores_are_said(self) -> None:
        plan = plan_slots([], 2, workers=5)
        assert (len(plan.slots), plan.threads, plan.notes) == (5, 1, ("5 workers share 2 cores",))

    def test_the_cpu_can_be_asked_for_where_there_are_gpus(self) -> None:
        assert names(plan_slots([gpu(0), gpu(1)], 2, devices="cpu")) == ["cpu/0", "cpu/1"]

    def test_workers_per_gpu_make_no_sense_without_one(self) -> None:
        with pytest.raises(UsageError, match=r"--per-device 2 .* use --workers"):
            plan_slots([], 4, per_device=2)


class TestOnGpus:
    def test_one_worker_a_gpu_leasing_it_by_uuid(self) -> None:
        plan = plan_slots([gpu(0), gpu(1)], 16)
        assert names(plan) == ["cuda:0", "cuda:1"]
        assert [slot.key for slot in plan.slots] == ["uuid-0/0", "uuid-1/0"]
        assert (plan.threads, plan.notes) == (8, ())

    def test_a_busy_gpu_is_skipped_and_said(self) -> None:
        plan = plan_slots([gpu(0), gpu(1, used_gib=61.2)], 16)
        assert names(plan) == ["cuda:0"]
        assert plan.notes == ("cuda:1 is busy (61.2 of 79.6 GiB in use): skipped",)

    def test_a_busy_gpu_that_is_named_is_used_and_said(self) -> None:
        plan = plan_slots([gpu(0), gpu(1, used_gib=61.2)], 16, devices="1")
        assert names(plan) == ["cuda:1"]
        assert plan.notes == ("cuda:1 is busy (61.2 of 79.6 GiB in use): used as asked",)

    def test_when_every_gpu_is_busy_nothing_falls_back_unasked(self) -> None:
        with pytest.raises(UsageError, match=r"every GPU is busy .*--devices 0,1\) or --devices cpu"):
            plan_slots([gpu(0, used_gib=9), gpu(1, used_gib=9)], 16)

    @pytest.mark.parametrize(
        ("used", "total", "busy"),
        [(0.9, 4.0, False), (1.1, 4.0, True), (7.9, 80.0, False), (8.1, 80.0, True)],
    )
    def test_busy_is_a_tenth_of_the_memory_but_never_less_than_a_gib(
        self, used: float, total: float, busy: bool
    ) -> None:
        assert gpu(0, used, total).busy is busy

    def test_devices_are_taken_in_the_order_named(self) -> None:
        assert names(plan_slots([gpu(0), gpu(1), gpu(2)], 16, devices="cuda:2, 0")) == ["cuda:2", "cuda:0"]

    def test_several_workers_on_a_gpu_have_names_and_keys_of_their_own(self) -> None:
        plan = plan_slots([gpu(0), gpu(1)], 16, per_device=2)
        assert names(plan) == ["cuda:0", "cuda:1", "cuda:0/1", "cuda:1/1"]
        assert [slot.key for slot in plan.slots] == ["uuid-0/0", "uuid-1/0", "uuid-0/1", "uuid-1/1"]

    @pytest.mark.parametrize(
        ("each", "used", "cpus", "per_gpu"),
        [(30.0, 0.5, 16, 2), (30.0, 20.0, 16, 1), (1.0, 0.5, 16, 4), (1.0, 0.5, 3, 3), (100.0, 0.5, 16, 1)],
        ids=["what fits", "what is free", "a few at most", "a core each", "one in any case"],
    )
    def test_a_gpu_gets_as_many_workers_as_its_free_memory_holds(
        self, each: float, used: float, cpus: int, per_gpu: int
    ) -> None:
        plan = plan_slots([gpu(0, used)], cpus, devices="0", bytes_each=int(each * GIB))
        assert len(plan.slots) == per_gpu
        assert [f"{per_gpu} workers with {each:.1f} GiB" in note for note in plan.notes if "workers" in note] == (
            [True] if per_gpu > 1 else []
        )

    def test_each_gpu_gets_its_own_number_of_them(self) -> None:
        plan = plan_slots([gpu(0, total_gib=16), gpu(1), gpu(2, total_gib=30)], 16, bytes_each=12 * GIB)
        assert names(plan) == ["cuda:0", "cuda:1", "cuda:2", "cuda:1/1", "cuda:2/1", "cuda:1/2", "cuda:1/3"]
        assert [slot.key for slot in plan.slots][-1] == "uuid-1/3"

    @pytest.mark.parametrize("asked", [{"workers": 1}, {"per_device": 1}, {"devices": "0,cpu"}])
    def test_what_was_asked_for_counts_more_than_memory(self, asked: dict[str, Any]) -> None:
        plan = plan_slots([gpu(0)], 2, bytes_each=GIB, **asked)
        assert [slot.name for slot in plan.slots if slot.key] == ["cuda:0"]

    def test_few_workers_spread_over_the_gpus(self) -> None:
        assert names(plan_slots([gpu(0), gpu(1)], 16, per_device=2, workers=3)) == [
            "cuda:0",
            "cuda:1",
            "cuda:0/1",
        ]

    def test_more_workers_than_gpus_share_them(self) -> None:
        assert names(plan_slots([gpu(0), gpu(1)], 16, workers=3)) == ["cuda:0", "cuda:1", "cuda:0/1"]

    def test_workers_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"--workers 3 do not fit on 1 GPU with --per-device 2: .*at most 2"):
            plan_slots([gpu(0)], 16, workers=3, per_device=2)

    def test_the_cpu_beside_a_gpu_gets_the_cores_that_are_left(self) -> None:
        plan = plan_slots([gpu(0), gpu(1)], 4, devices="cuda:1,cpu")
        assert names(plan) == ["cuda:1", "cpu/0", "cpu/1", "cpu/2"]
        assert plan.threads == 1

    def test_the_cpu_beside_a_gpu_takes_the_workers_that_are_over(self) -> None:
        assert names(plan_slots([gpu(0)], 8, devices="0,cpu", workers=3)) == ["cuda:0", "cpu/0", "cpu/1"]
        assert names(plan_slots([gpu(0)], 8, devices="0,cpu", workers=1)) == ["cuda:0"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"workers": 0}, "--workers must be at least 1, but got 0"),
        ({"workers": -2}, "--workers must be at least 1, but got -2"),
        ({"per_device": 0}, "--per-device must be at least 1, but got 0"),
        ({"devices": "3"}, "--devices '3': no device '3'; this machine has cuda:0, cpu"),
        ({"devices": "cuda:7,0"}, "no device 'cuda:7'"),
        ({"devices": "-1"}, "no device '-1'"),
        ({"devices": "gpu"}, "no device 'gpu'"),
        ({"devices": ""}, "no device ''"),
        ({"devices": "0,,cpu"}, "no device ''"),
        ({"devices": "0,cuda:0"}, "cuda:0 is named twice"),
    ],
)
def test_what_cannot_be_planned_is_one_line_with_the_value(asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_slots([gpu(0)], 4, **asked)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class TestAskingTorch:
    def test_a_machine_without_a_gpu_starts_no_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(subprocess, "run", None)
        assert gpus() == []

    def test_the_child_process_finds_dialin_and_torch_from_any_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "search.py").write_text("raise RuntimeError('a stranger')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # The child sees no GPU, on any machine.
        assert gpus() == []

    def test_what_the_child_prints_is_read_back(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        properties = SimpleNamespace(uuid="5f0e", name="Imagined 1000")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (10 * GIB, (index + 20) * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        print_gpus()
        stand_in(monkeypatch, tmp_path, f"echo a greeting\necho '{capsys.readouterr().out.strip()}'")
        assert gpus() == [Gpu(i, "5f0e", "Imagined 1000", (i + 20) * GIB, 10 * GIB) for i in (0, 1)]

    @pytest.mark.parametrize(
        ("program", "said"),
        [
            (
                "echo Traceback >&2; echo RuntimeError: no >&2; exit 1",
                r"cannot open the GPUs \(RuntimeError: no\)",
            ),
            ("exit 139", "cannot open the GPUs"),
            ("exec sleep 60", "the GPUs did not answer"),
        ],
    )
    def test_gpus_that_cannot_be_opened_are_one_line(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, said: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(devices, "QUERY_SECONDS", 0.5)
        stand_in(monkeypatch, tmp_path, program)
        with pytest.raises(DialinError, match=f"{said}.*--devices cpu"):
            gpus()


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Let a shell script answer in place of the Python that asks the GPUs."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
