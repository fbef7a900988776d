"""Where workers can run: this process' cores, the GPUs, and one slot for every worker.

Called by the commands that start workers (`dialin run`, `dialin worker`, `dialin check`). Planning is a pure
function of what was found, so it is tested with made-up GPUs: tested on the CPU; not measured on a GPU.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.errors import DialinError, UsageError

GIB = 1024**3
# A GPU is taken for busy when others hold more than this share of it and more than this much: an idle GPU's
# own CUDA contexts and a desktop stay below a GiB, which is more than a tenth of a small card.
BUSY_SHARE = 0.10
BUSY_BYTES = GIB
# Processes take turns on a GPU: more than a few of them only wait for each other. Not measured on a GPU.
MOST_BY_MEMORY = 4
# What is kept free of a GPU whose memory decides: models of other trials may be larger than the one that was tried.
KEPT_FREE = 0.10
# Opening a CUDA context on each of eight GPUs takes seconds; a driver that hangs must not hang the command.
QUERY_SECONDS = 120.0


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it: `index` is torch's own, so CUDA_VISIBLE_DEVICES has been applied already."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int

    @property
    def device(self) -> str:
        """The name torch takes, such as "cuda:0"."""
        return f"cuda:{self.index}"

    @property
    def busy(self) -> bool:
        """Whether somebody else is using it, judged by the memory in use."""
        used = self.total_bytes - self.free_bytes
        return used > BUSY_BYTES and used > BUSY_SHARE * self.total_bytes

    @property
    def usage(self) -> str:
        """The memory in use, for people: "61.2 of 79.6 GiB in use"."""
        return f"{(self.total_bytes - self.free_bytes) / GIB:.1f} of {self.total_bytes / GIB:.1f} GiB in use"


@dataclass(frozen=True)
class Slot:
    """One worker's place: its devices, which of the workers on them it is (from 0), and what to lease.

    `key` is "<gpu uuid>/<n>": leased in the database, it keeps two commands on one machine (or two containers
    that see the same GPU under different numbers) from taking the same place. None on a CPU.
    """

    devices: tuple[str, ...]
    index: int
    key: str | None

    @property
    def name(self) -> str:
        """For people: "cuda:0", "cuda:0/1" for the second worker on that GPU, "cpu/0"."""
        joined = "+".join(self.devices)
        return joined if self.index == 0 and joined != "cpu" else f"{joined}/{self.index}"


@dataclass(frozen=True)
class SlotPlan:
    """The slots to start workers on, the CPU threads each worker may use, and what to tell the person."""

    slots: tuple[Slot, ...]
    threads: int
    notes: tuple[str, ...] = ()


def usable_cpus(
    *,
    affinity: int | None = None,
    cgroups: Path = Path("/sys/fs/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
) -> int:
    """Return how many cores this process may use: its affinity or its cgroup's quota, whichever is less.

    Args:
        affinity: number of cores the scheduler allows; asked of the system when None.
        cgroups: where cgroups (version 1 or 2) are mounted.
        own_cgroup: the file that names this process' cgroups.

    Returns:
        A whole number of cores, a fractional quota rounded down, at least 1.
    """
    if affinity is None:
        # Only Linux has affinities; elsewhere every core is usable.
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([float(affinity), *_quotas(cgroups, own_cgroup)])))


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor is called, as Linux says on x86, else by its architecture."""
    for line in _read(cpuinfo).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "cpu"


def _quotas(cgroups: Path, own_cgroup: Path) -> Iterator[float]:
    """Yield the quota, in cores, of this process' cgroup and of every one above it.

    Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max holds "quota period" in microseconds,
    or "max period") and https://docs.kernel.org/scheduler/sched-bwc.html (version 1, -1 for none).
    """
    for line in _read(own_cgroup).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            mount, files = cgroups, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, files = cgroups / controllers, ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container the named path may lie outside what is mounted: the folders above it are read too.
        inside = mount / path.lstrip("/")
        for folder in [inside, *inside.parents]:
            if not folder.is_relative_to(mount):
                break
            numbers = " ".join(_read(folder / name) for name in files).split()
            if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):
                yield int(numbers[0]) / int(numbers[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def gpus() -> list[Gpu]:
    """Return the GPUs that torch sees, in torch's order, with the memory that is free now.

    Asking for free memory opens a CUDA context on each of them. That happens in a child process: this one
    stays without, so that workers can be forked from it and it holds no memory on any GPU.

    Raises:
        DialinError: torch finds GPUs but cannot open them.
    """
    import torch

    if torch.cuda.device_count() == 0:  # Asks the driver only; no context is made.
        return []
    # -P: what lies in the current folder must not be imported in place of torch or of this package.
    program = "import sys; sys.path.append(sys.argv[1]); from search import devices; devices.print_gpus()"
    command = [sys.executable, "-P", "-c", program, str(Path(__file__).resolve().parent.parent)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
        return [Gpu(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    except subprocess.TimeoutExpired:
        raise DialinError(f"the GPUs did not answer within {QUERY_SECONDS:.0f} s; use --devices cpu") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DialinError(f"torch cannot open the GPUs ({reason}); use --devices cpu") from None


def print_gpus() -> None:
    """Print the GPUs as one line of JSON; run in the child process that `gpus` starts."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
        found.append(Gpu(index, str(properties.uuid), properties.name, total, free))
    print(json.dumps([asdict(gpu) for gpu in found]))


def plan_slots(
    gpus: Sequence[Gpu],
    cpus: int,
    *,
    workers: int | None = None,
    devices: str | None = None,
    per_device: int | None = None,
    bytes_each: int | None = None,
) -> SlotPlan:
    """Decide where workers run.

    Args:
        gpus: what `gpus()` found, in torch's order.
        cpus: what `usable_cpus()` found.
        workers: how many workers; by default one a GPU slot, without a GPU one a core.
        devices: "0,2", "cuda:1,cpu" or "cpu"; by default every GPU that is not busy, without a GPU the CPU.
            A GPU named here is taken even when it is busy.
        per_device: workers on each GPU; by default as many as `workers` needs, else as memory says.
        bytes_each: what one worker takes on a GPU. Where it is not known, and beside workers on the CPU, one is enough.

    Raises:
        UsageError: nothing can be planned from what was asked, or every GPU is busy.
    """
    check_counts(workers, per_device)
    chosen, on_cpu, notes = _choose(gpus, devices)
    if not chosen:
        if per_device is not None and per_device > 1:
            raise UsageError(f"--per-device {per_device} counts workers on a GPU and none is used; use --workers")
        count = workers or cpus
        if count > cpus:
            notes.append(f"{count} workers share {cpus} {_cores(cpus)}")
        return SlotPlan(_cpu_slots(count), _threads(cpus, count), tuple(notes))
    if bytes_each is not None and workers is None and per_device is None and not on_cpu:
        slots = _by_memory(chosen, cpus, bytes_each)
        notes += _crowded(slots, chosen, bytes_each)
    else:
        slots = _gpu_slots(chosen, [_share(chosen, on_cpu, workers, per_device)] * len(chosen))
    if on_cpu:
        # Every GPU worker keeps a core busy feeding it: the CPU's workers get what is left.
        rest = max(1, cpus - len(slots)) if workers is None else max(0, workers - len(slots))
        slots += _cpu_slots(rest)
    slots = slots[:workers]
    return SlotPlan(slots, _threads(cpus, len(slots)), tuple(notes))


def _threads(cpus: int, workers: int) -> int:
    """Each worker's part of the cores, or fewer if OMP_NUM_THREADS says so: others may need the rest."""
    each, most = max(1, cpus // workers), os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(each, int(most)) if most.isdecimal() and int(most) else each


def check_counts(workers: int | None, per_device: int | None) -> None:
    for flag, value in (("--workers", workers), ("--per-device", per_device)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} must be at least 1, but got {value}")


def _choose(gpus: Sequence[Gpu], devices: str | None) -> tuple[list[Gpu], bool, list[str]]:
    """Return the GPUs to use, whether CPU workers are wanted too, and what to say about it."""
    if devices is not None:
        chosen, on_cpu = _named(gpus, devices)
        return (
            chosen,
            on_cpu,
            [f"{gpu.device} is busy ({gpu.usage}): used as asked" for gpu in chosen if gpu.busy],
        )
    free = [gpu for gpu in gpus if not gpu.busy]
    if gpus and not free:
        busy = ", ".join(f"{gpu.device} {gpu.usage}" for gpu in gpus)
        names = ",".join(str(gpu.index) for gpu in gpus)
        raise UsageError(
            f"every GPU is busy ({busy}); name those to use all the same (--devices {names}) or --devices cpu"
        )
    return free, False, [f"{gpu.device} is busy ({gpu.usage}): skipped" for gpu in gpus if gpu.busy]


def _named(gpus: Sequence[Gpu], devices: str) -> tuple[list[Gpu], bool]:
    """Read "0,2", "cuda:1,cpu" or "cpu": the GPUs in the order named, and whether the CPU is among them."""
    known = {gpu.device: gpu for gpu in gpus}
    wanted: list[str] = []
    for part in devices.split(","):
        name = part.strip().lower()
        device = f"cuda:{int(name)}" if name.isdecimal() else name
        if device not in known and device != "cpu":
            here = ", ".join([*known, "cpu"])
            raise UsageError(f"--devices {devices!r}: no device {part.strip()!r}; this machine has {here}")
        if device in wanted:
            raise UsageError(f"--devices {devices!r}: {device} is named twice; several workers on one: --per-device 2")
        wanted.append(device)
    return [known[device] for device in wanted if device != "cpu"], "cpu" in wanted


def _share(chosen: Sequence[Gpu], on_cpu: bool, workers: int | None, per_device: int | None) -> int:
    """Return how many workers each GPU gets; the CPU, where it is named too, takes those that are over."""
    if per_device is None:
        return 1 if workers is None or on_cpu else -(-workers // len(chosen))
    places = per_device * len(chosen)
    if workers is not None and workers > places and not on_cpu:
        raise UsageError(
            f"--workers {workers} do not fit on {len(chosen)} GPU{'s' * (len(chosen) > 1)} with --per-device "
            f"{per_device}: give at most {places} workers or a larger --per-device"
        )
    return per_device


def _by_memory(chosen: Sequence[Gpu], cpus: int, bytes_each: int) -> tuple[Slot, ...]:
    """As many as fit into the memory that is free, with a core to feed each."""
    most = max(1, min(MOST_BY_MEMORY, cpus // len(chosen)))
    room = (int(gpu.free_bytes - KEPT_FREE * gpu.total_bytes) // max(1, bytes_each) for gpu in chosen)
    return _gpu_slots(chosen, [min(most, max(1, fitting)) for fitting in room])


def _crowded(slots: Sequence[Slot], chosen: Sequence[Gpu], bytes_each: int) -> list[str]:
    """What to say of GPUs with several workers."""
    counts = {gpu.device: sum(gpu.device in slot.devices for slot in slots) for gpu in chosen}
    each = f"{bytes_each / GIB:.1f} GiB of its memory each"
    return [f"{device}: {count} workers with {each} (--per-device)" for device, count in counts.items() if count > 1]


def _gpu_slots(chosen: Sequence[Gpu], counts: Sequence[int]) -> tuple[Slot, ...]:
    """Every GPU's first slot comes before any GPU's second, so that few workers spread over all GPUs."""
    return tuple(
        Slot((gpu.device,), n, f"{gpu.uuid}/{n}")
        for n in range(max(counts))
        for gpu, count in zip(chosen, counts, strict=True)
        if n < count
    )


def _cpu_slots(count: int) -> tuple[Slot, ...]:
    return tuple(Slot(("cpu",), n, None) for n in range(count))


def _cores(count: int) -> str:
    return "core" if count == 1 else "cores"
