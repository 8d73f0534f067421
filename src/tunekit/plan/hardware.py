"""What this machine has. The processor is read without torch; GPUs need torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from tunekit.recipe.schema import Block


class Gpu(Block):
    """One CUDA device. ``memory`` in bytes."""

    name: str
    memory: int
    bf16: bool


class Hardware(Block):
    """The machine as the plan sees it. ``memory`` in bytes; ``cores`` are those this process may use, whole ones."""

    cpu: str
    cores: int
    memory: int
    cpu_bf16: bool
    gpus: tuple[Gpu, ...] = ()

    @property
    def device(self) -> str:
        """``cuda`` when there is a GPU, else ``cpu``."""
        return "cuda" if self.gpus else "cpu"


def usable_cores(system: Path = Path("/"), processors: Collection[int] | None = None) -> int:
    """Cores this process may use: those of the affinity mask, cut by the quotas of its control groups.

    Hyperthreads of one core count once: they share the units that multiply matrices.

    Args:
        system: the folder that holds ``proc`` and ``sys``.
        processors: numbers of the processors of the affinity mask; this process's own when None.
    """
    mine = os.sched_getaffinity(0) if processors is None else processors
    cores = {_core(system, number) for number in mine}
    return max(1, min([len(cores), *_quotas(system)]))


def _core(system: Path, processor: int) -> str:
    """The processors of its core, as the kernel lists them; its own number where that is not told."""
    listed = system / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return listed.read_text(encoding="ascii").strip()
    except OSError:
        return str(processor)


def _quotas(system: Path) -> Iterator[int]:
    """Whole cores that each control group above this process grants, in versions 1 and 2 of control groups."""
    mount = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # inside a container the path may be the host's, and the mount the group itself: what is not there grants all
        top = mount / controllers if controllers else mount
        group = PurePosixPath(path.lstrip("/"))
        for folder in (top / group, *(top / parent for parent in group.parents)):
            yield from _quota(folder)


def _quota(group: Path) -> Iterator[int]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
        granted = int(quota) // int(period)
    except (OSError, ValueError):  # no quota here, or the word "max"
        return
    if int(quota) > 0:
        yield granted


def _cpu() -> tuple[str, bool]:
    """Name of the processor, and whether it multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown", False
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    return facts.get("model name", "unknown"), bool(flags & {"avx512_bf16", "amx_bf16"})


def can_compile(device: str) -> bool:
    """Whether torch.compile can make code: for a CPU it needs a C++ compiler."""
    return device != "cpu" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def probe() -> Hardware:
    """Looks at this machine; imports torch to ask for GPUs."""
    import torch

    name, cpu_bf16 = _cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(name=facts.name, memory=facts.total_memory, bf16=facts.major >= 8))
    return Hardware(cpu=name, cores=usable_cores(), memory=memory, cpu_bf16=cpu_bf16, gpus=tuple(gpus))
