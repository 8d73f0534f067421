"""Cores are counted on planted folders of the kernel; the layouts are those of its documentation."""

import os

import pytest

from tunekit.plan.hardware import usable_cores

PAIRS = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}


@pytest.fixture
def plant(tmp_path):
    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="ascii")
        return tmp_path

    return write


def siblings(pairs):
    return {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in pairs.items()}


def test_hyperthreads_of_one_core_count_once(plant):
    system = plant(siblings(PAIRS))
    assert usable_cores(system, {0, 1, 4, 5}) == 2
    assert usable_cores(system, {0, 4}) == 1
    assert usable_cores(system, {0, 5}) == 2


def test_without_a_topology_every_processor_is_a_core(tmp_path):
    assert usable_cores(tmp_path, {0, 1, 2}) == 3


V2 = "0::/jobs/mine"
V1 = "4:memory:/x\n3:cpu,cpuacct:/jobs/mine\n0::/"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (V2, {}, 8),
        (V2, {"jobs/mine/cpu.max": "max 100000"}, 8),
        (V2, {"jobs/mine/cpu.max": "300000 100000"}, 3),
        (V2, {"jobs/mine/cpu.max": "max 100000", "jobs/cpu.max": "200000 100000"}, 2),
        (V2, {"jobs/mine/cpu.max": "50000 100000"}, 1),
        (V2, {"jobs/mine/cpu.max": "1600000 100000"}, 8),
        (V2, {"cpu.max": "250000 100000"}, 2),  # a container that sees its own group as the root
        (V1, {"cpu,cpuacct/jobs/mine/cpu.cfs_quota_us": "-1", "cpu,cpuacct/jobs/mine/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu,cpuacct/jobs/cpu.cfs_quota_us": "400000", "cpu,cpuacct/jobs/cpu.cfs_period_us": "100000"}, 4),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"memory/jobs/mine/cpu.max": "100000 100000"}, 8),
    ],
)
def test_the_quota_of_a_control_group_cuts_the_cores(plant, groups, files, cores):
    system = plant({"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert usable_cores(system, range(8)) == cores


def test_here_it_is_at_most_the_affinity_mask():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
