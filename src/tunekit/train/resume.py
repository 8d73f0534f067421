"""Going on with a run: which checkpoint can be trusted, what lies around from before, and what changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.core.errors import MachineError, Problem, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.data.cache import Key, changed_parts
from tunekit.plan.changes import Change, changes, judge
from tunekit.plan.hardware import can_compile
from tunekit.plan.plan import Plan
from tunekit.runs.layout import RunFolder, checkpoints
from tunekit.runs.record import read_record
from tunekit.train.checkpoint import DELETED, MANIFEST, Checkpoint, Skipped, newest, set_aside

_PART_KEYS = {
    "rows": ("data.train", "data.eval"),
    "tokenizer": ("model.tokenizer",),
    "template": ("model.chat_template",),
    "mask": ("data.loss_on",),
    "lengths": ("data.max_length", "data.overlong", "data.packing"),
    "split": ("data.eval", "train.seed"),
    "policy": ("data.duplicates", "data.max_drop_rate"),
    "code": ("data",),
}
"""The recipe keys that shape a part of the prepared data's key (`data.cache.PARTS`)."""
_FIXED_PARTS = {"tokenizer": "the weights belong to the tokens of the old one; start a new run"}


@dataclass(frozen=True)
class Resumption:
    """How a run is gone on with.

    Args:
        plan: the plan that is now carried out.
        checkpoint: the one it goes on from; None begins anew, for there is none yet.
        accepted: what has changed since, and is applied.
        allowed: what ``--allow-change`` named.
        damaged: newer checkpoints that cannot be used.
        finished: the run came to its end, and nothing has changed since.
    """

    plan: Plan
    checkpoint: Checkpoint | None
    accepted: tuple[Change, ...]
    allowed: frozenset[str]
    damaged: tuple[Skipped, ...] = ()
    finished: bool = False

    @property
    def step(self) -> int:
        """The step it goes on from."""
        return self.checkpoint.step if self.checkpoint else 0

    def words(self) -> tuple[str, ...]:
        """What has changed, a line each."""
        return tuple(f"{change.key}: {change.old} -> {change.new}" for change in self.accepted)


def is_run(folder: RunFolder) -> bool:
    """Whether a run has begun here."""
    return folder.plan.exists() or folder.record.exists()


def resumption(plan: Plan, folder: RunFolder, allowed: Collection[str], screen: Screen) -> Resumption:
    """Finds the newest whole checkpoint and compares the plans; changes nothing.

    Raises:
        UserError: there is no run in the folder, or the recipe changed in a way that was not allowed.
        MachineError: there are checkpoints, but every one is damaged.
    """
    # a run that was cut off at once has left hidden files at most
    if not is_run(folder) and any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise UserError(
            "this folder holds something else than a run: nothing was touched",
            where=str(folder.path),
            fix="name the run's folder, or another one to begin in",
        )
    there = checkpoints(folder.checkpoints)
    found, skipped = newest(folder.checkpoints)
    for skip in skipped:
        screen.warn(f"{skip.folder.name} is not used: {skip.why}")
    if there and found is None:
        raise MachineError(
            f"none of the {len(there)} checkpoints is whole",
            where=str(folder.checkpoints),
            fix="begin anew in another folder; the damaged files are left as they are",
            problems=[Problem(str(skip.why), str(skip.folder)) for skip in skipped],
        )
    accepted: tuple[Change, ...] = ()
    if found is not None:
        old = Plan.load(found.folder / "plan.json")
        plan = _as_settled(old, plan)
        judgement = judge(changes(old, plan), allowed)
        raise_all(UserError, judgement.problems)
        accepted = judgement.accepted
    done = folder.record.exists() and read_record(folder).status == "done"
    if done and found is None:
        raise UserError(
            "the run is finished and has no checkpoint to go on from",
            where=str(folder.path),
            fix="start a new run from its model: `model.name` is the folder model/",
        )
    return Resumption(plan, found, accepted, frozenset(allowed), tuple(skipped), done and not accepted)


def make_ready(resumed: Resumption, folder: RunFolder, screen: Screen) -> None:
    """Clears the way: damaged checkpoints are renamed."""
    for skip in resumed.damaged:
        aside = set_aside(skip.folder)
        screen.say(f"the damaged checkpoint is now called {aside.name}; it can be deleted")


def _as_settled(old: Plan, new: Plan) -> Plan:
    """What was settled when the run began stays so: whether torch compiles, and ``micro_batch_size: auto``."""
    able = not old.compiled or can_compile(new.hardware.device)
    if old.recipe.train.compile == new.recipe.train.compile and able:
        new = new.model_copy(update={"compiled": old.compiled})
    same = old.recipe.train.micro_batch_size == new.recipe.train.micro_batch_size == "auto"
    if same and (old.processes, old.examples_per_step) == (new.processes, new.examples_per_step):
        return new.model_copy(update={"micro_batch_size": old.micro_batch_size, "accumulation": old.accumulation})
    return new


def clear(folder: RunFolder) -> None:
    """Removes what a run that was cut off left behind: half-written files and what was to be deleted."""
    clear_staging(folder)
    junk = [folder.path / ".rehearsal", folder.path / ".ranks"]
    junk += folder.path.glob(f".{folder.model.name}.*")
    junk += folder.checkpoints.glob(f"{DELETED}*") if folder.checkpoints.is_dir() else []
    for path in junk:
        if path.exists():
            shutil.rmtree(path)
    for pattern in (".*.json.*", ".*.jsonl.*", ".*.html.*", ".*.yaml.*", ".outcome.json", ".error.json"):
        for path in folder.path.glob(pattern):
            path.unlink()


def clear_staging(folder: RunFolder) -> None:
    """Removes half-written checkpoints; what trackers wrote beside them (tensorboard's events) is kept."""
    if not folder.staging.exists():
        return
    for path in folder.staging.iterdir():
        if path.is_dir() and not path.name.startswith("step-"):
            shutil.copytree(path, folder.path / "trackers" / path.name, dirs_exist_ok=True)
        elif path.is_file():
            (folder.path / "trackers").mkdir(exist_ok=True)
            path.replace(folder.path / "trackers" / path.name)
    shutil.rmtree(folder.staging)


def check_data(resumed: Resumption, fingerprint: str, parts: dict[str, Any]) -> None:
    """Compares the prepared data with that of the checkpoint.

    Args:
        resumed: with what was allowed and accepted.
        fingerprint: of the prepared data.
        parts: what shaped it (`data.cache.Key`).

    Raises:
        UserError: other rows, another template or tokenizer, and no changed key of the recipe that explains it.
    """
    if resumed.checkpoint is None or resumed.checkpoint.facts["data"] == fingerprint:
        return
    explained = {change.key for change in resumed.accepted} | resumed.allowed
    problems = []
    for part, difference in changed_parts(Key(parts), resumed.checkpoint.facts["data_parts"]):
        keys = _PART_KEYS[part]
        if part in _FIXED_PARTS or not any(_covers(name, key) for name in explained for key in keys):
            fix = _FIXED_PARTS.get(part, f"restore it, or train on with what is there now by --allow-change {keys[0]}")
            if part == "rows":
                difference = _other_files(parts[part], resumed.checkpoint.facts["data_parts"][part]) or difference
            problems.append(Problem(f"the data is not that of the checkpoint ({part}): {difference}", keys[0], fix))
    raise_all(UserError, problems)


def _other_files(new: dict[str, Any], old: dict[str, Any]) -> str:
    """The files whose content is not what it was, by name."""

    def hashes(rows: dict[str, Any]) -> dict[str, str]:
        sources = [*rows["train"], *rows["eval"]]
        return {file["file"]: file["sha256"] for source in sources for file in source["files"]}

    now, before = hashes(new), hashes(old)
    return "; ".join(f"{name} has other content" for name in now if name in before and now[name] != before[name])


def _covers(name: str, key: str) -> bool:
    return name == key or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What the manifest of a verified checkpoint says of its run."""
    facts: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
    return facts


def check_base(checkpoint: Path, base: str) -> None:
    """Refuses to go on with other base weights than those that the checkpoint began with.

    Raises:
        UserError: they differ.
    """
    if facts_of(checkpoint)["base"] != base:
        raise UserError(
            "the base model is not the one that this run began with",
            where="model.name",
            fix="bring the old weights back (pin model.revision to a commit), or start a new run",
        )
