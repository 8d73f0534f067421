"""The rows of an evaluation: a run's own held-out rows, or sources read as training reads them; no row vanishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.core import types
from tunekit.core.errors import DataError, Problem, TunekitError, raise_all
from tunekit.core.progress import Screen
from tunekit.data import cache
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import Fitter, TokenFacts
from tunekit.data.prepare import Prepared
from tunekit.data.render import Renderer
from tunekit.data.sources import iter_rows
from tunekit.evaluate.contract import EvalItem, Row
from tunekit.model.tokenizer import tokenizer_hash
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import SourceBlock
from tunekit.runs.layout import RunFolder
from tunekit.train.inputs import Inputs, eval_items

WHOLE = 1 << 30  # nothing is cut: a text longer than a model's positions is the task's matter
SHOWN = 10


@dataclass
class Tally:
    """Rows that were read, and those of them that cannot be used, with the reasons."""

    read: int = 0
    lost: list[Problem] = field(default_factory=list)

    def settle(self, max_drop_rate: float, screen: Screen) -> None:
        """Tells of lost rows.

        Raises:
            DataError: there are no rows, or more than ``max_drop_rate`` of them are lost.
        """
        if self.read == 0:
            raise DataError("the evaluation set is empty", fix="check the file")
        if len(self.lost) > max_drop_rate * self.read:
            more = len(self.lost) - SHOWN
            told = [Problem(f"and {more:,} more rows")] if more > 0 else []
            share = (
                f"{len(self.lost):,} of {self.read:,} evaluation rows cannot be used; {max_drop_rate:.0%} are allowed"
            )
            raise_all(DataError, [Problem(share, fix="mend them, or raise max_drop_rate"), *self.lost[:SHOWN], *told])
        for problem in self.lost[:SHOWN]:
            screen.warn(f"{problem.where}: not evaluated: {problem.what}")
        if len(self.lost) > SHOWN:
            screen.warn(f"{len(self.lost) - SHOWN:,} further rows are not evaluated")


def fitter_of(tokenizer: Any) -> Fitter:
    """Renders and labels examples as training on answers would, whole."""
    facts = TokenFacts(tokenizer_hash(tokenizer), len(tokenizer), tokenizer.bos_token_id)
    return Fitter(Renderer(tokenizer, loss_on="assistant"), facts, WHOLE, "drop", isolated=False)


def examples(
    sources: Sequence[SourceBlock], base: Path, fitter: Fitter, tally: Tally, *, answers: bool = False
) -> Iterator[EvalItem]:
    """Examples rendered as the model reads them.

    Args:
        sources: where they are.
        base: folder where relative paths start.
        fitter: of the model's tokenizer.
        tally: counts what is read and lost.
        answers: only rows with a prompt and an answer can be used.
    """
    for origin, example in ExampleReader(base).examples(sources):
        tally.read += 1
        (found,) = fitter.encode([example]) if isinstance(example, types.Example) else [example]
        reason = found if isinstance(found, str) else found.lost
        if isinstance(found, str) or not found.examples:
            tally.lost.append(Problem(reason, str(origin)))
            continue
        row = found.examples[0]
        ids = tuple(row["input_ids"])
        prompt = ids[: row["prompt_tokens"]] if row["prompt"] else ()
        if answers and not prompt:
            tally.lost.append(Problem("it has no prompt with an answer, which this task needs", str(origin)))
            continue
        trained = tuple(label >= 0 for label in row["labels"])
        shown = row["prompt"] or found.text
        yield EvalItem(ids, trained, prompt, shown, row["reference"], str(origin))


def plain(sources: Sequence[SourceBlock], base: Path, tally: Tally) -> Iterator[Row]:
    """Rows as they were read, with all their columns."""
    for index, source in enumerate(sources):
        for row in iter_rows(source, index, base):
            tally.read += 1
            if isinstance(row, types.BadRow):
                tally.lost.append(Problem(row.reason, str(row.origin)))
            else:
                yield Row(row.value, str(row.origin))


def held_out(run: RunFolder, screen: Screen) -> list[EvalItem]:
    """The rows that a run held out, as it prepared them; prepared again where they are kept no longer.

    Raises:
        DataError: it held out none, or its sources are not what they were.
    """
    plan = Plan.load(run.plan)
    inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
    try:
        name = inputs.key.name
    except TunekitError as error:
        kept = [path.parent for path in (run.path / "data").glob("*/key.json")]
        if not kept:
            fix = "put them back, or name data"
            raise DataError(f"the run's data cannot be read again: {error}", where=str(run.path), fix=fix) from error
        return eval_items(Prepared(kept[0]))
    own = [place / name for place in (cache.root(), run.path / "data") if (place / name / "key.json").exists()]
    items = eval_items(Prepared(own[0]) if own else inputs.prepare(screen, run.path / "data"))
    if not items:
        raise DataError("the run held out no rows", where=str(run.path), fix="name data to evaluate on")
    return items


def training_texts(run: RunFolder | None, sources: Sequence[SourceBlock], base: Path) -> Iterator[tuple[str, str]]:
    """Every text that a model was trained on, message by message, with ``file:line`` of its row.

    A run's rows are those of its sources that its ledger does not name as held out.

    Raises:
        TunekitError: the sources are not there any more.
    """
    from tunekit.data.ledger import Ledger

    held: frozenset[str] = frozenset()
    if run is not None:
        plan = Plan.load(run.plan)
        sources, base = plan.recipe.data.train, Path(plan.recipe_folder)
        ledger = Ledger.load(run.ledger)
        held = frozenset(str(ledger[n].origin) for n in range(len(ledger)) if ledger[n].split == "eval")
    for origin, example in ExampleReader(base).examples(sources):
        if isinstance(example, types.Example) and str(origin) not in held:
            for text in [message.content for message in example.messages] or [example.text]:
                yield text, str(origin)
