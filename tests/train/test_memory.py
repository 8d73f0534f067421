"""Memory: what a probe leaves (nothing), when it refuses, what it names, and that what it says fits does fit."""

from __future__ import annotations

import random
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_for_tests import forked

from tunekit.core.errors import MachineError, out_of_memory
from tunekit.train import memory
from tunekit.train.available import available_bytes, memory_limit, process_bytes
from tunekit.train.disk import optimizer_bytes
from tunekit.train.memory import largest_micro_batch, probe

MB = 10**6
LORA = {"kind": "lora", "r": 4, "dropout": 0.1}
WIDE = "builtin:random?layers=2&hidden=256&heads=4"
TIGHT = {"model__name": WIDE, "data__max_length": 512, "train__batch_size": 8, "train__micro_batch_size": 8}


@pytest.fixture(scope="module")
def long_last(write_rows, talk_of, tmp_path_factory):
    """16 short rows and a long one at line 17."""
    path = tmp_path_factory.mktemp("long") / "rows.jsonl"
    long = {"messages": [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "word " * 600}]}
    return write_rows(path, [*(talk_of(n) for n in range(16)), long])


@pytest.fixture
def ready(plan_of, session_of):
    """(trainer, plan, where) of a recipe."""
    from tunekit.data.ledger import Ledger

    def build(**sets):
        plan = plan_of(**sets)
        session, trainer = session_of(plan)
        ledger = Ledger.load(session.prepared.ledger_path)
        return trainer, plan, lambda number: str(ledger[number].origin)

    return build


@pytest.fixture
def machine_with(monkeypatch):
    """A machine with so many bytes of free memory."""
    return lambda count: monkeypatch.setattr(memory, "available_bytes", lambda: count)


def settled(trainer):
    """All that a probe might disturb."""
    model = trainer.model
    return (
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        [module.training for module in model.modules()], [p.grad for p in model.parameters()],
        [b.tolist() for b in model.buffers()], int(getattr(trainer, "tokens_seen", 0)),
        trainer.method_state(), trainer.state.global_step,
        model.is_gradient_checkpointing, model.config.to_json_string(), torch.is_grad_enabled(),
        resource.getrlimit(resource.RLIMIT_DATA),
    )  # fmt: skip


def refusal(trainer, plan, where):
    """(exit code, what, where, fix) of a refused probe, in a process of its own; it too leaves nothing behind."""

    def work():
        before = settled(trainer)
        try:
            probe(trainer, plan, where)
        except MachineError as error:
            assert settled(trainer) == before
            problem = error.problems[0]
            return error.exit_code, problem.what, problem.where, problem.fix

    return forked(work)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    "sets",
    [
        {"train__micro_batch_size": 2},
        {"adapter": LORA, "train__neftune_alpha": 5.0},
        {"adapter": LORA, "train__gradient_checkpointing": True},
        {"data__packing": True, "data__eval": {"count": 5}, "eval__every": 1},
        {"data__streaming": True, "train__precision": "bf16"},
    ],
    ids=["accumulated", "lora", "recomputed", "packed", "stream"],
)
def test_a_run_with_the_probe_has_the_same_weights(sets, ready):
    trained = []
    for with_probe in (True, False):
        trainer, plan, where = ready(train__max_steps=3, **sets)
        if with_probe:
            before, own = settled(trainer), weights(trainer)
            found = probe(trainer, plan, where)
            assert settled(trainer) == before
            assert all(torch.equal(value, own[name]) for name, value in weights(trainer).items())
            assert found.micro_batch == plan.micro_batch_size and found.peak_gb >= 0 and 0 < found.tokens <= 128
        trainer.train()
        trained.append(weights(trainer))
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_it_names_the_longest_row(ready, long_last):
    trainer, plan, where = ready(data__train=[{"path": str(long_last)}], data__max_length=300)
    found = probe(trainer, plan, where)
    assert found.where.endswith("rows.jsonl:17") and found.tokens == 300
    trainer, plan, where = ready(data__packing=True, data__max_length=256)
    assert re.search(r"talks\.jsonl:\d+ and \d+ rows packed with it", probe(trainer, plan, where).where)
    trainer, plan, where = ready(data__streaming=True)
    assert probe(trainer, plan, where).tokens == plan.recipe.data.max_length


def test_a_batch_that_does_not_fit_is_refused_with_settings_that_do(ready, long_last, machine_with, note):
    rows = [{"path": str(long_last), "weight": 4.0}]  # so often that a micro-batch can be filled with long ones
    trainer, plan, where = ready(data__train=rows, **TIGHT)
    machine_with(130 * MB)
    code, what, place, fix = refusal(trainer, plan, where)
    note(f"{place}: {what} | {fix}")
    assert code == 4 and place.endswith("rows.jsonl:17") and "512 tokens" in what
    micro = int(re.search(r"micro_batch_size: (\d+);", fix)[1])
    length = int(re.search(r"data.max_length: (\d+)", fix)[1])
    assert micro < 8 and length < 512
    assert "train.gradient_checkpointing: true" in fix
    for advice in ({"train__micro_batch_size": micro}, {"data__max_length": length}):
        ready_again = ready(data__train=rows, **TIGHT | advice)
        assert forked(lambda made=ready_again: probe(*made).micro_batch) > 0  # what it says fits, fits


def test_nothing_fits(ready, machine_with):
    trainer, plan, where = ready(**TIGHT)
    machine_with(0)
    code, what, _, fix = refusal(trainer, plan, where)
    assert code == 4 and "out of memory" in what and "smaller model" in fix
    kind, name, code, what, _, _ = forked(lambda: largest_micro_batch(trainer, plan, where))
    assert (kind, name, code) == ("error", "MachineError", 4) and "the longest training example" in what


def test_an_evaluation_batch_that_does_not_fit(ready, write_rows, talk_of, tmp_path, machine_with, note):
    short = write_rows(tmp_path / "short.jsonl", [talk_of(n) for n in range(50, 54)])
    long = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "word " * 600}]
    rows = [{"messages": [{"role": "user", "content": f"{n}"}, *long[1:]]} for n in range(32)]
    held = [{"path": str(write_rows(tmp_path / "held.jsonl", rows))}]
    trainer, plan, where = ready(
        model__name=WIDE, data__train=[{"path": str(short)}], data__eval=held, data__max_length=512,
        train__batch_size=1, eval__batch_size=64, eval__every=1,
    )  # fmt: skip
    machine_with(130 * MB)
    _, what, place, fix = refusal(trainer, plan, where)
    note(f"{place}: {what} | {fix}")
    assert "held.jsonl:" in place and "512 tokens" in what and "held-out" in what
    assert re.search(r"eval\.batch_size: \d+$", fix)


def test_the_largest_micro_batch(ready, machine_with, monkeypatch, long_last, note):
    rows = [{"path": str(long_last), "weight": 4.0}]
    trainer, plan, where = ready(data__train=rows, **TIGHT)
    assert largest_micro_batch(trainer, plan, where) == 8
    monkeypatch.setitem(memory.FIRST_TOKENS, "cpu", 4 * 512)
    assert largest_micro_batch(trainer, plan, where) == 4  # not begun at an absurd size
    monkeypatch.setitem(memory.FIRST_TOKENS, "cpu", 10**9)
    machine_with(130 * MB)
    found = forked(lambda: largest_micro_batch(trainer, plan, where))
    note(f"largest micro-batch in 130 MB: {found}")
    assert found in (1, 2, 4)


def test_gradient_checkpointing_lowers_the_peak(ready, long_last, note):
    sets = {"data__train": [{"path": str(long_last)}], **TIGHT, "train__micro_batch_size": 4}
    plain, lower = (probe(*ready(**sets, train__gradient_checkpointing=on)).peak_gb for on in (False, True))
    note(f"peak {plain} GB, with gradient checkpointing {lower} GB")
    assert lower < plain


def test_a_refusal_or_a_whole_run_under_a_small_limit(ready, long_last, note):
    """The longest row last: whatever the limit, a run is refused before its first step, or reaches its last."""
    trainer, plan, where = ready(
        data__train=[{"path": str(long_last)}], **TIGHT | {"train__batch_size": 6, "train__micro_batch_size": 6}
        | {"model__name": WIDE.replace("hidden=256", "hidden=768")}, train__max_steps=3,
    )  # fmt: skip

    def run():
        probe(trainer, plan, where)
        trainer.train()
        return "done"

    outcome = forked(trainer.train, memory=60 * MB)
    note(f"without the guard: {outcome}")
    kind, _, _, what, _, _ = outcome
    assert kind == "other" and "can't allocate memory" in what  # the fault, without the guard
    found = {extra: forked(run, memory=extra * MB) for extra in (60, 150, 1500)}
    refused = {extra: result for extra, result in found.items() if result != "done"}
    note(f"refused with {list(refused)} MB, done with {[extra for extra in found if extra not in refused]} MB")
    assert refused and len(refused) < len(found)
    for result in refused.values():
        _, kind, code, what, place, _ = result
        assert (kind, code) == ("MachineError", 4) and place.endswith("rows.jsonl:17") and "512 tokens" in what
    assert max(refused) < min(set(found) - set(refused))


def test_allocation_fails_before_the_kernel_kills():
    def work():
        torch.set_num_threads(2)
        kinds = []
        with memory_limit(200 * MB):
            for attempt in (lambda: torch.zeros(50 * MB), lambda: bytearray(200 * MB), lambda: b"x" * 200 * MB):
                try:
                    attempt()
                except (MemoryError, RuntimeError) as error:
                    kinds.append((type(error).__name__, out_of_memory(error)))
            small = float(torch.ones(1 << 20).add_(1).sum())  # work within the limit, on two threads
        torch.zeros(60 * MB)  # the limit is lifted again
        return kinds, small, resource.getrlimit(resource.RLIMIT_DATA)

    kinds, small, limit = forked(work)
    assert [name for name, _ in kinds] == ["RuntimeError", "MemoryError", "MemoryError"]
    assert all(recognised for _, recognised in kinds)
    assert small == 2 << 20 and limit == resource.getrlimit(resource.RLIMIT_DATA)


def test_a_lower_limit_is_never_raised():
    def work():
        lower = process_bytes("VmData") + 100 * MB
        resource.setrlimit(resource.RLIMIT_DATA, (lower, resource.RLIM_INFINITY))
        with memory_limit(10**12):
            inside = resource.getrlimit(resource.RLIMIT_DATA)
        return inside[0] == lower, resource.getrlimit(resource.RLIMIT_DATA)[0] == lower, available_bytes() <= 100 * MB

    assert forked(work) == (True, True, True)


def test_what_is_out_of_memory():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert out_of_memory(RuntimeError("std::bad_alloc"))
    assert not out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not out_of_memory(ValueError("out of memory"))


def test_an_error_of_another_kind_is_not_swallowed(ready, monkeypatch):
    trainer, plan, where = ready()
    def broken(model, inputs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trainer, "local_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        probe(trainer, plan, where)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "r": 4}])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor", "sgd"])
def test_the_states_take_what_the_optimizer_really_takes(optimizer, adapter, ready):
    trainer, _, _ = ready(train__optimizer=optimizer, adapter=adapter)
    trainer.train()
    inner = trainer.optimizer.optimizer
    states = [state for each in getattr(inner, "inner", [inner]) for state in each.state.values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert optimizer_bytes(trainer.model, optimizer) == real
    assert (real == 0) == (optimizer == "sgd")


@pytest.mark.parametrize(("optimizer", "kind"), [("adamw_8bit", "AdamW8bit"), ("lion_8bit", "Lion8bit")])
def test_the_states_of_8_bits(optimizer, kind):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = torch.nn.ParameterList([torch.zeros(100, 100), torch.zeros(300), torch.zeros(64, 65)])
    real = getattr(bitsandbytes.optim, kind)(model.parameters())
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    real.step()
    names = {"state1", "state2", "absmax1", "absmax2"}
    tensors = [v for s in real.state.values() for name, v in s.items() if name in names and v is not None]
    assert optimizer_bytes(model, optimizer) == sum(t.numel() * t.element_size() for t in tensors)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\n"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({"proc/self/cgroup": "0::/\n"}, 8_192_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
          "sys/fs/cgroup/a/memory.max": "5000000\n", "sys/fs/cgroup/a/memory.current": "3000000\n",
          "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 400000\nactive_file 100000\n"}, 2_500_000),
        ({"proc/self/cgroup": "0::/../../host\n", "sys/fs/cgroup/memory.max": "1000\n",
          "sys/fs/cgroup/memory.current": "3000\n",
          "sys/fs/cgroup/memory.stat": "inactive_file 0\nactive_file 0\n"}, 0),
        ({"proc/self/cgroup": "5:cpu,io:/x\n4:memory:/job\n0::/\n",
          "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "7000000\n",
          "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "6000000\n",
          "sys/fs/cgroup/memory/job/memory.stat": "cache 5\ntotal_inactive_file 7\ntotal_active_file 3\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": "9000000\n",
          "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\ntotal_active_file 0\n"}, 1_000_010),
    ],
    ids=["none", "version 2, the parent's", "version 2, a container", "version 1"],
)  # fmt: skip
def test_available_memory_is_the_least_of_machine_and_groups(files, available, tmp_path):
    assert available_bytes(tree(tmp_path, {"proc/meminfo": MEMINFO} | files)) == available
