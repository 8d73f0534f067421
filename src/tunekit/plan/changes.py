"""What changed between the plan a checkpoint was made with and the plan of today, and what may be applied to it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from tunekit.core.errors import Problem
from tunekit.core.registry import METHODS, nearest
from tunekit.plan.plan import Plan
from tunekit.recipe.kinds import recipe_type

Kind = Literal["harmless", "allowed", "fixed"]
"""harmless: needs no word; allowed: applied when it is named; fixed: cannot be applied to a checkpoint."""

OWN_BLOCK = "<method>"
"""Stands in the table for the block named like the method."""

_NEW_RUN = "keep the old value, or start a new run from the checkpoint, with its folder as model.name"
_FROM_START = "keep the old value, or start a new run"


@dataclass(frozen=True)
class Rule:
    """What a change of some keys means. ``keys`` are dotted; one that names a block holds for all that is in it.

    ``fix`` is what to do about a change of a fixed key.
    """

    keys: tuple[str, ...]
    kind: Kind
    why: str
    fix: str = _NEW_RUN


RULES = (
    Rule(("train.log_every", "train.trackers"), "harmless", "only what is written down changes"),
    Rule(("train.save_every", "train.keep_checkpoints"), "harmless", "only when checkpoints are made, and kept"),
    Rule(
        ("train.workers", "train.threads"),
        "harmless",
        "the same work is shared out differently (other CPU threads may change the last bits of a sum)",
    ),
    Rule(("eval",), "harmless", "measures the weights and leaves them as they are"),
    Rule(("guards",), "harmless", "decides what happens when training goes wrong, and nothing while it goes right"),
    Rule(("data.cache",), "harmless", "the prepared data is the same, kept or not"),
    Rule(("output",), "harmless", "the resumed run stays in its folder"),
    Rule(("method",), "fixed", "a checkpoint holds the state of its own method"),
    Rule(("model.name", "model.revision"), "fixed", "the checkpoint's weights come from the old one", _FROM_START),
    Rule(("model.dtype",), "fixed", "the weights and the optimizer's state are kept in the old type"),
    Rule(("model.tokenizer", "model.new_tokens"), "fixed", "the weights were trained on the old tokenizer's ids"),
    Rule(("model.quantize",), "fixed", "the adapter was trained on weights that were rounded otherwise"),
    Rule(("adapter",), "fixed", "the trained weights, their shapes and their scale belong to the old adapter"),
    Rule(("train.optimizer",), "fixed", "the kept state belongs to the old optimizer"),
    Rule(("data.streaming",), "fixed", "the position in a stream is not one in a list of rows"),
    Rule(("model.chat_template",), "allowed", "the rows are rendered to other tokens"),
    Rule(
        ("model.attention", "train.kernels", "train.compile"),
        "allowed",
        "the same mathematics in another order: results differ in their last bits",
    ),
    Rule(
        ("data.train", "data.eval", "data.duplicates", "data.overlong", "data.max_length"),
        "allowed",
        "other rows, or other parts of them: those already seen may come again, others not at all",
    ),
    Rule(("data.max_drop_rate",), "allowed", "more or fewer lost rows are put up with"),
    Rule(("data.loss_on",), "allowed", "other tokens are trained from here on"),
    Rule(
        ("data.packing", "data.shuffle", "train.group_by_length", "train.seed"),
        "allowed",
        "the rows come in another order: those already seen may come again, others not at all",
    ),
    Rule(
        ("train.batch_size", "train.micro_batch_size", "launch"),
        "allowed",
        "the batches are cut differently, so a step is another one",
    ),
    Rule(("train.epochs", "train.max_steps"), "allowed", "lowered, or one in the place of the other: a shorter run"),
    Rule(
        ("train.learning_rate", "train.schedule", "train.warmup"),
        "allowed",
        "the learning rate of every further step is another one",
    ),
    Rule(
        ("train.weight_decay", "train.max_grad_norm", "train.adam_beta1", "train.adam_beta2", "train.adam_epsilon"),
        "allowed",
        "every further update is computed differently",
    ),
    Rule(("train.neftune_alpha",), "allowed", "other noise is added to the embeddings from here on"),
    Rule(("train.precision", "train.gradient_checkpointing"), "allowed", "other arithmetic: results differ"),
    Rule(("train.early_stopping", "train.keep_best"), "allowed", "another step may give the finished weights"),
    Rule(("train.extra",), "allowed", "what another library's setting does is not known here"),
    Rule((OWN_BLOCK,), "allowed", "the method computes another loss from here on"),
)
"""What a change of a key means; the longest key that fits decides. Two more rules look at the values."""

LONGER = Rule(
    ("train.epochs", "train.max_steps"),
    "harmless",
    "raised: the run goes on for longer, its learning rate following the schedule of the new length",
)
CHOOSES = Rule(
    ("eval.every", "eval.batch_size"),
    "allowed",
    "with train.keep_best or train.early_stopping: the evaluation loss decides which weights the run ends with",
)


@dataclass(frozen=True)
class Change:
    """A recipe key whose value is another one now; a derived value stands under the key that it is derived from.

    ``chooses``: the evaluation decides which weights the run ends with (see ``CHOOSES``).
    """

    key: str
    old: Any
    new: Any
    chooses: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Judgement:
    """Changes to apply, harmless ones included, and a problem for every other one."""

    accepted: tuple[Change, ...]
    problems: tuple[Problem, ...]


def changes(old: Plan, new: Plan) -> list[Change]:
    """The recipe keys whose values, or what was derived from them, differ between two plans.

    Of ``train.precision``, ``model.dtype``, ``launch.processes`` and ``train.micro_batch_size`` the derived values are
    compared: ``auto`` may come to something else on another machine, and to write down what it came to is no change. A
    micro-batch that only follows from another batch size, length or number of processes is not reported beside them.
    The folder, the machine, its threads and the version of tunekit are not compared.
    """
    before, after = _compared(old), _compared(new)
    if old.method != new.method:
        # the two methods' own blocks have nothing in common to compare
        before, after = ({k: v for k, v in side.items() if k not in METHODS.names} for side in (before, after))
    found = list(_differences("", before, after))
    micro = (old.recipe.train.micro_batch_size, new.recipe.train.micro_batch_size)
    follows = {"train.batch_size", "launch.processes", "data.max_length"} & {change.key for change in found}
    if follows and micro[0] == micro[1]:
        found = [change for change in found if change.key != "train.micro_batch_size"]
    trains = (old.recipe.train, new.recipe.train)
    chooses = any(train.keep_best or train.early_stopping is not None for train in trains)
    return [replace(change, chooses=True) if chooses and change.key in CHOOSES.keys else change for change in found]


def rule_of(key: str) -> Rule | None:
    """The rule for a dotted key, None for a key that no rule names."""
    own = key.split(".")[0] in METHODS.names
    fitting = [(len(name), rule) for rule in RULES for name in rule.keys if _within(OWN_BLOCK if own else key, name)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def judge(found: Sequence[Change], allowed: Collection[str]) -> Judgement:
    """Sorts changes into those to apply and those to refuse.

    Args:
        found: the changes since the checkpoint.
        allowed: what ``--allow-change`` named: keys, or blocks for everything in them.
    """
    problems = [_unknown(name) for name in allowed if not _is_known(name)]
    accepted = []
    keys = {change.key for change in found}
    for change in found:
        rule = _rule_for(change, keys)
        named = any(_within(key, name) for key in (change.key, _plain(change.key)) for name in allowed)
        if rule.kind == "harmless" or (rule.kind == "allowed" and named):
            accepted.append(change)
            continue
        what = f"'{change.key}' was {_shown(change.old)} when the checkpoint was made, now it is {_shown(change.new)}"
        if rule.kind == "fixed":
            problems.append(Problem(f"{what}; it cannot be changed: {rule.why}", change.key, rule.fix))
        else:
            fix = f"keep the old value, or apply the new one with --allow-change {change.key}"
            problems.append(Problem(what, change.key, fix))
    return Judgement(tuple(accepted), tuple(problems))


def table() -> list[tuple[str, Kind, str]]:
    """Every rule for the documentation, a row for each of its keys: key or block, kind, why."""
    return [(key, rule.kind, rule.why) for rule in (*RULES, LONGER, CHOOSES) for key in rule.keys]


def _rule_for(change: Change, keys: Set[str]) -> Rule:
    if change.chooses and change.key in CHOOSES.keys:
        return CHOOSES
    # of epochs exchanged for steps, which is longer is not known before the rows are counted
    if change.key in LONGER.keys and not keys >= set(LONGER.keys):
        default = 1 if change.key == "train.epochs" else None
        old, new = (default if value is None else value for value in (change.old, change.new))
        if old is not None and new is not None and new >= old:
            return LONGER
    return rule_of(change.key) or Rule((change.key,), "allowed", "")


def _compared(plan: Plan) -> dict[str, Any]:
    """The recipe as plain values, with what its derived keys came to and without the run's folder."""
    value: dict[str, Any] = plan.recipe.model_dump(mode="json")
    value.pop("output")
    value["train"] |= {"precision": plan.precision, "micro_batch_size": plan.micro_batch_size}
    value["model"]["dtype"] = plan.weights_dtype
    value["launch"]["processes"] = plan.processes
    return value


def _differences(key: str, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        inner = [(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])]
    elif _are_blocks(old) and _are_blocks(new) and len(old) == len(new):
        inner = [(str(index), *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        # True is 1 for Python, not in a recipe
        if old != new or isinstance(old, bool) != isinstance(new, bool):
            yield Change(key, old, new)
        return
    for name, before, after in inner:
        yield from _differences(f"{key}.{name}" if key else name, before, after)


def _are_blocks(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _within(key: str, name: str) -> bool:
    """Whether ``key`` is ``name`` or stands in the block ``name``."""
    return key == name or key.startswith(f"{name}.")


def _plain(key: str) -> str:
    """The key without positions in lists: ``data.train.0.path`` is ``data.train.path``."""
    return ".".join(part for part in key.split(".") if not part.isdigit())


@cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    """(every key and block of every method's recipe, those of them that take keys of the user's own)."""
    keys: set[str] = set()
    open_: set[str] = set()

    def walk(node: dict[str, Any], path: str) -> None:
        if path:
            keys.add(path)
        if "$ref" in node:
            walk(definitions[node["$ref"].rsplit("/", 1)[-1]], path)
        for option in (*node.get("anyOf", ()), *node.get("oneOf", ()), *([node["items"]] if "items" in node else [])):
            walk(option, path)
        if node.get("additionalProperties"):
            open_.add(path)
        for name, inner in node.get("properties", {}).items():
            walk(inner, f"{path}.{name}" if path else name)

    for method in METHODS.names:
        schema = recipe_type(method).model_json_schema()
        definitions = schema.get("$defs", {})
        walk({"properties": schema["properties"]}, "")
    return frozenset(keys), frozenset(open_)


def _is_known(name: str) -> bool:
    keys, open_ = _known()
    return _plain(name) in keys or any(_within(_plain(name), block) for block in open_)


def _unknown(name: str) -> Problem:
    close = nearest(name, sorted(_known()[0]))
    fix = f"did you mean '{close}'?" if close else "name a key, such as train.learning_rate, or a block, such as data"
    return Problem(f"unknown recipe key '{name}'", "--allow-change", fix)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if _are_blocks(value):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
