"""The tasks of an evaluation, ready to be run: their labels, options and sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunekit.core.errors import UserError
from tunekit.core.registry import TASKS
from tunekit.exam import pairs
from tunekit.exam.answers import kept_answers
from tunekit.exam.recipe import options
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import SourceBlock
from tunekit.runs.layout import RunFolder


@dataclass(frozen=True)
class Task:
    """A task of the recipe, ready to be run.

    Args:
        label: what it is called in tables.
        module: the plug-in.
        config: its options.
        sources: its rows; None for the run's held-out ones.
        limit: at most so many rows.
    """

    label: str
    module: Any
    config: Any
    sources: tuple[SourceBlock, ...] | None
    limit: int | None


def tasks_of(exam: Any, run: RunFolder | None = None, *, scores: bool = False) -> list[Task]:
    """The recipe's tasks with labels that are told apart; where it names none, those of the run's own evaluation.

    Args:
        exam: the recipe.
        run: that made the model.
        scores: whether it is a reward model.

    Raises:
        UserError: two tasks have one name, or one wants pairs judged by what the model does not give.
    """
    found: list[Task] = []
    if not exam.tasks:
        spec = Plan.load(run.plan).recipe.eval if run is not None else None
        wanted: dict[str, dict[str, Any]] = {"preference": {"by": "reward"}} if scores else {"perplexity": {}}
        if spec is not None and spec.generate and not scores:
            wanted["generation"] = {"max_new_tokens": spec.max_new_tokens, "metrics": tuple(spec.metrics)}
        modules = [(name, TASKS.load(name), given) for name, given in wanted.items()]
        return [Task(name, module, module.Config(**given), exam.data, exam.limit) for name, module, given in modules]
    for block in exam.tasks:
        module = TASKS.load(block.kind)
        label = block.name or block.kind
        labels = {task.label for task in found}
        if label in labels and block.name:
            raise UserError(f"two tasks are called '{label}'", where="tasks", fix="name them differently")
        label = next(name for name in (label, *(f"{label}-{n}" for n in range(2, 1000))) if name not in labels)
        config = _settled(options(block, module), exam)
        if module.READS == pairs.READS:
            config = config.model_copy(update={"by": pairs.by_of(config.by, scores, label, exam.model)})
        found.append(Task(label, module, config, block.data or exam.data, block.limit or exam.limit))
    return found


def _settled(config: Any, exam: Any) -> Any:
    """A task's options, with what the recipe says for all tasks where the task itself says nothing."""
    fields, given = type(config).model_fields, config.model_fields_set
    wanted: dict[str, Any] = {}
    if exam.cache and "cache" in fields and config.cache is None:
        wanted["cache"] = kept_answers() / "verdicts.sqlite"
    if "limit" in fields and config.limit is None and exam.limit is not None:
        wanted["limit"] = exam.limit
    if "seeds" in fields and "seeds" not in given and config.temperature > 0:
        wanted["seeds"] = exam.seeds
    return config.model_copy(update=wanted)
