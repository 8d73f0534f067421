"""What a reference model finds the answers of the data worth: computed once, before training, and kept.

The reference of a preference method is the policy as it begins. So there is never a second model in memory, and what
was computed for the same data and weights is found again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.core.progress import Screen
from tunekit.data import cache
from tunekit.evaluate.mode import evaluating, without_adapter
from tunekit.model.fingerprint import weights_fingerprint

if TYPE_CHECKING:
    from tunekit.rl.groups import GroupTrainer

AGREES = 1e-6
"""How far policy and reference may be apart before the first step, as a share of the log-probability."""
ROUNDING = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""The same for values that were computed in other batches, in which sums are added up in another order."""


def add_reference(trainer: GroupTrainer, kind: str, screen: Screen, passes: int = 1) -> None:
    """Gives the rows of a trainer a column ``reference_logps``: for each of their answers its log-probability in nats.

    Args:
        trainer: its model is as training will begin with it.
        kind: ``initial``: the policy as it is now; ``base``: without its adapter.
        screen: shows progress.
        passes: how many columns of answers a row has.

    Raises:
        UserError: policy and reference do not agree on the first rows, so that the training would start from a margin
            that nobody asked for.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = kind == "base"
    parts = {
        "data": trainer.checkpoint_facts["data"],
        "weights": weights_fingerprint(model, frozen_only=base, whole=True),
        "kind": kind,
        "arithmetic": [trainer.plan.precision, trainer.padded_because, trainer.shares],
        "passes": passes,
    }
    folder = cache.root().parent / "reference"
    splits = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    for split, rows in splits.items():
        if rows is None:
            continue
        key = cache.Key(parts | {"split": split, "rows": len(rows)})
        place = folder / key.name
        if trainer.ranks.gather((place / "key.json").exists())[0]:
            values = _read(place)
        else:
            with screen.step(f"reference of {split} rows", len(rows), "rows") as step, _as_reference(model, base):
                values = answers_logps(trainer, model, rows, step.advance)
            if trainer.ranks.rank == 0:
                cache.keep(key, folder, lambda made, found=values: _write(made, found))  # type: ignore[misc]
        splits[split] = rows.add_column("reference_logps", values)
    trainer.train_dataset, trainer.eval_dataset = splits["train"], splits["eval"]
    _check(trainer, model, base)


def _as_reference(model: Any, base: bool) -> AbstractContextManager[Any]:
    return without_adapter(model) if base else nullcontext(model)


def answers_logps(trainer: GroupTrainer, model: Any, rows: Any, advance: Any) -> list[list[float]]:
    """For each row the log-probability of each of its answers, in the arithmetic of training; every rank has all."""
    from tunekit.train.batches import EpochBatches, EpochLoader

    rank, world = trainer.ranks.rank, trainer.ranks.world
    order = sorted(range(len(rows)), key=lambda index: -rows["length"][index])
    chosen = rows.select(order)
    size = trainer.plan.micro_batch_size
    batches = EpochBatches(
        chosen["length"][:],
        global_batch=size * world,
        micro_batch=size,
        rank=rank,
        world=world,
        order="sequential",
        seed=0,
    )
    own: list[list[float]] = []
    with evaluating(model):
        for batch in EpochLoader(chosen, batches, collate_fn=trainer.data_collator):
            trainer.pulse("computing the reference")
            own += group_values(trainer, model, batch)
            advance(int((batch["tokens"] > 0).sum()) * world)
    values: list[list[float]] = [[] for _ in order]
    for at, part in enumerate(trainer.ranks.gather(own)):
        for place, value in zip(range(at, len(order), world), part, strict=True):
            values[order[place]] = value
    return values


def group_values(trainer: GroupTrainer, model: Any, batch: dict[str, Any]) -> list[list[float]]:
    """The log-probabilities of the answers of each group of a batch that is no filler."""
    from tunekit.kernels.segments import sequences

    with trainer.compute_loss_context_manager():
        inputs = trainer._prepare_inputs(batch)
        groups = trainer.groups_of(model, inputs)
    logps, first = groups.logps.tolist(), groups.first.tolist()
    counts = sequences(inputs)[inputs["tokens"] > 0].tolist()
    return [logps[start : start + count] for start, count in zip(first, counts, strict=True)]


def _check(trainer: GroupTrainer, model: Any, base: bool) -> None:
    """Policy and reference on the rows that training begins with."""
    size = min(trainer.plan.micro_batch_size, len(trainer.train_dataset))
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(size)])
    stored = batch.pop("reference_logps").tolist()
    with evaluating(model):
        policy = group_values(trainer, model, batch)
        with _as_reference(model, base):
            again = group_values(trainer, model, batch)
    loose = ROUNDING[trainer.plan.precision]
    for row, (one, other, before) in enumerate(zip(policy, again, stored, strict=True)):
        for a, b, c in zip(one, other, before, strict=False):
            if abs(a - b) > AGREES * max(1.0, abs(b)):
                raise UserError(
                    f"the policy does not begin as its reference: the log-probability of an answer is {a:.6f}, that of "
                    f"the reference {b:.6f}",
                    where=trainer.where(int(batch["rows"][row, 0])),
                    fix="this adapter changes the model before it is trained: use `reference: initial`",
                )
            assert abs(b - c) <= loose * max(1.0, abs(b)), f"the kept reference is of other rows: {b} is not {c}"


def _write(folder: Path, values: list[list[float]]) -> None:
    import numpy as np

    np.save(folder / "values.npy", np.array(values, dtype=np.float32), allow_pickle=False)


def _read(folder: Path) -> list[list[float]]:
    import numpy as np

    found: list[list[float]] = np.load(folder / "values.npy", allow_pickle=False).tolist()
    return found
