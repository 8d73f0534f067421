"""What memory a process may still take, and how to fail before the kernel kills it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: the machine's, or its cgroup's or its own limit's if less.

    Page cache counts as free, for the kernel gives it up. ``root`` is where ``proc`` and ``sys`` lie.
    """
    found = [_field(root / "proc/meminfo", "MemAvailable:") * 1024]
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            names = ("memory.max", "memory.current", "") if not controllers else _VERSION_1
            below = top / path.lstrip("/")
            found += [_cgroup_room(folder, *names) for folder in (below, *below.parents) if folder.is_relative_to(top)]
    for number, size in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(number)
        found += [max(0, soft - process_bytes(size))] if soft != resource.RLIM_INFINITY else []
    return min(found)


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_UNLIMITED = 1 << 62


def _cgroup_room(folder: Path, limit: str, used: str, prefix: str) -> int:
    try:
        words = (folder / limit).read_text(encoding="ascii").strip()
        if words == "max":
            return _UNLIMITED
        cache = sum(_field(folder / "memory.stat", f"{prefix}{name}_file ") for name in ("inactive", "active"))
        return max(0, int(words) - int((folder / used).read_text(encoding="ascii")) + cache)
    except OSError:  # the top folder has no limit, and a container does not see the folders above its own
        return _UNLIMITED


def process_bytes(name: str) -> int:
    """A size of this process in bytes: VmSize, VmData, VmRSS (resident now) or VmHWM (the most that was resident)."""
    return _field(Path("/proc/self/status"), f"{name}:") * 1024


def _field(path: Path, name: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).removeprefix(name).split()[0])


@contextmanager
def memory_limit(available: int) -> Iterator[None]:
    """Inside, allocations beyond ``available`` bytes fail as errors that can be caught, before the kernel kills.

    The soft RLIMIT_DATA counts private writable memory since Linux 4.7. A twentieth, at least 64 MB, stays free.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = process_bytes("VmData") + max(0, available - max(available // 20, 64 << 20))
    for other in (soft, hard):
        limit = limit if other == resource.RLIM_INFINITY else min(limit, other)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
