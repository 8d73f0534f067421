"""What a reference model finds the answers of the data worth: computed once, before training, and kept.

The reference of a preference method is the policy as it begins, or a model that is named. There is never a second model
in memory while training goes on, and what was computed for the same data and weights is found again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError
from tunekit.core.files import sha256_file, sha256_json, write_json
from tunekit.core.progress import Screen
from tunekit.data import cache
from tunekit.evaluate.mode import evaluating, plain_model, without_adapter
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.model.kbit import is_quantized
from tunekit.rl.other_reference import OWN, other_trainer

if TYPE_CHECKING:
    from tunekit.rl.groups import GroupTrainer

AGREES = {"fp32": 1e-6, "bf16": 5e-3, "fp16": 1e-3}
"""How far policy and reference may be apart before the first step, as a share of the log-probability: some kinds of
adapter begin as their base but for rounding."""
ROUNDING = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""The same for values that were computed in other batches, in which sums are added up in another order."""
OF_QUANTIZED = 0.1
"""The same for quantized weights: some have an arithmetic of their own, and those of 8 bits round what they are given,
by what else is in the batch."""
_MADE = 2
"""Of the way in which values are computed: another one's are not taken for them."""
_VALUES, _SUMS = "values.npy", "sums.json"
_AGAIN = "remove the folder {}: the reference is computed again"
_NAMES = frozenset({"_name_or_path", "base_model_name_or_path", "revision", "inference_mode", "transformers_version"})
"""Of a config: what says where a model came from, and not what it computes."""


def add_reference(trainer: GroupTrainer, kind: str, screen: Screen) -> None:
    """Gives the rows of a trainer a column ``reference_logps``: for each of their answers its log-probability in nats.

    Args:
        trainer: its model is as training will begin with it.
        kind: ``initial``: the policy as it is now; ``base``: without its adapter; or the name of another model.
        screen: shows progress.

    Raises:
        UserError: policy and reference do not agree on the first rows, so that the training would start from a margin
            that nobody asked for; or the model gives answers no finite log-probability, or reads other tokens.
        MachineError: the kept values are damaged, or not those of this model and these rows.
    """
    if kind in OWN:
        place = _enter(trainer, trainer, kind, screen)
        _check(trainer, trainer, kind, place)
        return
    with other_trainer(trainer, kind) as other:
        place = _enter(trainer, other, "initial", screen)
        _check(trainer, other, kind, place)


def _enter(trainer: GroupTrainer, known: GroupTrainer, kind: str, screen: Screen) -> Path:
    """Adds the column, of values that the trainer ``known`` computes or that are kept: where those of training lie."""
    model = known.accelerator.unwrap_model(known.model)
    parts: dict[str, object] = {
        "weights": weights_fingerprint(model, frozen_only=False, whole=True),
        "model": _shape(model),
        "kind": kind,
        "made": _MADE,
        "arithmetic": [known.plan.precision, known.padded_because, known.shares],
    }
    if known.tail_weight is not None:
        parts["tail_weight"] = known.tail_weight
    own = Path(trainer.plan.run_dir) / "data" / "reference"
    folder = cache.reference_root() if trainer.plan.recipe.data.cache else own
    splits = {"eval": trainer.eval_dataset, "train": trainer.train_dataset}
    place = folder
    for split, rows in splits.items():
        if rows is None:
            continue
        key = cache.Key(parts | {"rows": _content(rows)})
        place = folder / key.name
        if trainer.ranks.gather((place / "key.json").exists())[0]:
            values = _read(place)
        else:
            what = f"reference of {split} rows"
            with screen.step(what, len(rows), "rows") as step, _as_reference(model, kind) as asked:
                values = answers_logps(known, asked, rows, step.advance)
            if trainer.ranks.rank == 0:
                cache.keep(key, folder, lambda made, found=values: _write(made, found))  # type: ignore[misc]
        splits[split] = rows.add_column("reference_logps", values)
    trainer.train_dataset, trainer.eval_dataset = splits["train"], splits["eval"]
    return place


def _shape(model: Any) -> str:
    """What a model computes beside its weights: such as the base of its rotary angles, or an adapter's factor."""
    configs = [plain_model(model).config.to_dict()]
    configs += [config.to_dict() for config in getattr(model, "peft_config", {}).values()]
    told = [{name: value for name, value in config.items() if name not in _NAMES} for config in configs]
    return sha256_json(json.loads(json.dumps(told, default=_plain)))


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, (set, frozenset)) else str(value)


def _content(rows: Any) -> str:
    """Hex sha256 of the answers of a data set, and of what they go on from."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(["input_ids", "labels", "branches"]).with_format("arrow").iter(1000):
        for name in batch.column_names:
            column = batch[name].combine_chunks()
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def _as_reference(model: Any, kind: str) -> AbstractContextManager[Any]:
    return without_adapter(model) if kind == "base" else nullcontext(model)


def answers_logps(trainer: GroupTrainer, model: Any, rows: Any, advance: Any) -> list[list[float]]:
    """For each row the log-probability of each of its answers, in the arithmetic of training; every rank has all."""
    from tunekit.train.batches import EpochBatches, EpochLoader

    rank, world = trainer.ranks.rank, trainer.ranks.world
    lengths = rows["length"][:]
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
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


def _check(trainer: GroupTrainer, known: GroupTrainer, kind: str, place: Path) -> None:
    """Policy and reference on the rows that training begins with.

    Args:
        trainer: the policy's.
        known: the reference's: the same, but for another model, which may begin as it likes.
        kind: of `add_reference`.
        place: where the values of these rows are kept.
    """
    size = min(trainer.plan.micro_batch_size, len(trainer.train_dataset))
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(size)])
    stored = batch.pop("reference_logps").tolist()
    model = known.accelerator.unwrap_model(known.model)
    precision = trainer.plan.precision
    apart = AGREES[precision], OF_QUANTIZED if is_quantized(model) else ROUNDING[precision]
    with evaluating(model):
        with _as_reference(model, kind) as asked:
            again = group_values(known, asked, batch)
        policy = group_values(trainer, model, batch) if known is trainer else again
    for row, values in enumerate(zip(policy, again, stored, strict=True)):
        where = trainer.where(int(batch["rows"][row, 0]))
        for one, other, before in zip(*values, strict=False):
            _agree(one, other, before, apart, where, place)


def _agree(policy: float, reference: float, kept: float, apart: tuple[float, float], where: str, place: Path) -> None:
    """The log-probabilities of one answer; ``apart``: how far the policy's and the kept one may be off, as shares."""
    if not isfinite(reference):
        raise UserError(
            f"the log-probability of an answer is {reference}",
            where=where,
            fix="the model's weights or this precision are at fault: try `train.precision: fp32`",
        )
    if not abs(policy - reference) <= apart[0] * max(1.0, abs(reference)):
        raise UserError(
            f"the policy does not begin as its reference: the log-probability of an answer is {policy:.6f}, that of "
            f"the reference {reference:.6f}",
            where=where,
            fix="this adapter changes the model before it is trained: use `reference: initial`",
        )
    if not abs(reference - kept) <= apart[1] * max(1.0, abs(reference)):
        raise MachineError(
            f"the kept reference is another model's or of other rows: {kept:.6f} in the place of {reference:.6f}, the "
            f"log-probability of the answer of {where}",
            where=str(place),
            fix=_AGAIN.format(place),
        )


def _write(folder: Path, values: list[list[float]]) -> None:
    import numpy as np

    np.save(folder / _VALUES, np.array(values, dtype=np.float32), allow_pickle=False)
    write_json(folder / _SUMS, {_VALUES: sha256_file(folder / _VALUES)})


def _read(folder: Path) -> list[list[float]]:
    import numpy as np

    try:
        sound = json.loads((folder / _SUMS).read_text(encoding="utf-8")) == {_VALUES: sha256_file(folder / _VALUES)}
    except (OSError, ValueError):
        sound = False
    if not sound:
        raise MachineError("the kept reference is damaged", where=str(folder), fix=_AGAIN.format(folder))
    found: list[list[float]] = np.load(folder / _VALUES, allow_pickle=False).tolist()
    return found
