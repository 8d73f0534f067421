"""The rows of an evaluation: a run's own held-out rows, or sources read as training reads them; no row vanishes."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunekit.core import types
from tunekit.core.errors import DataError, Problem, TunekitError, UserError, raise_all
from tunekit.core.progress import Screen, Silent
from tunekit.core.registry import METHODS
from tunekit.data import cache
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import Fitter, TokenFacts
from tunekit.data.prepare import Prepared, prepare
from tunekit.data.render import Renderer
from tunekit.data.sources import iter_rows
from tunekit.evaluate.contract import EvalItem, Row
from tunekit.exam.learnt import conversations, written_answers
from tunekit.model.tokenizer import tokenizer_hash
from tunekit.plan.plan import Plan
from tunekit.recipe.kinds import material_of
from tunekit.recipe.schema import SourceBlock
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import read_record
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
    sources: Sequence[SourceBlock],
    base: Path,
    fitter: Fitter,
    tally: Tally,
    *,
    answers: bool = False,
    only: Container[str] | None = None,
    material: types.Material = "texts",
    written: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[EvalItem]:
    """Examples rendered as the model reads them; of preference data the better answer.

    Args:
        sources: where they are.
        base: folder where relative paths start.
        fitter: of the model's tokenizer.
        tally: counts what is read and lost.
        answers: only rows with a prompt and an answer can be used.
        only: places of the rows that are wanted; None for all.
        material: what the sources give.
        written: answers in the place of the sources' own, by the places of their rows.

    Raises:
        UserError: the rows are conversations, and the tokenizer has no chat template.
    """
    for origin, learnt in ExampleReader(base, material).learnt(sources):
        own = None if written is None else written.get(str(origin))
        example = learnt if isinstance(learnt, str) else conversations(learnt, own)[0]
        if only is not None and str(origin) not in only:
            continue
        tally.read += 1
        if isinstance(example, types.Example) and example.messages and fitter.renderer.template is None:
            name = fitter.renderer.tokenizer.name_or_path
            what = f"the tokenizer of '{name}' has no chat template, and the rows are conversations"
            fix = "save one with the model (chat_template.jinja), or evaluate plain text, or columns with chat: false"
            raise UserError(what, where=str(origin), fix=fix)
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
    found = _kept(run)
    if found is not None:
        items = eval_items(found)
    else:
        with TemporaryDirectory() as place:  # the run's own folder may be for reading only
            items = eval_items(_again(run, screen, Path(place)))
    if not items:
        raise DataError("the run held out no rows", where=str(run.path), fix="name data to evaluate on")
    return items


def held_out_for(
    run: RunFolder, held: Sequence[EvalItem], fitter: Fitter, tally: Tally, *, answers: bool
) -> list[EvalItem]:
    """The same rows as another model reads them, whose tokenizer or chat template is not that of the run.

    Args:
        run: that held them out.
        held: the rows as the run prepared them.
        fitter: of the other model's tokenizer.
        tally: counts what is read and lost.
        answers: only rows with a prompt and an answer can be used.

    Raises:
        DataError: the other model cannot use all of them.
        UserError: their source is gone.
    """
    plan = Plan.load(run.plan)
    data = plan.recipe.data
    sources = data.eval if isinstance(data.eval, tuple) else data.train
    wanted = {item.where for item in held}
    base, material = Path(plan.recipe_folder), material_of(plan.recipe)
    written = _written(run, plan, "eval")
    read = examples(sources, base, fitter, tally, answers=answers, only=wanted, material=material, written=written)
    found = {item.where: item for item in read}
    if written is not None:  # what is right is what the data says, whoever wrote the answer
        found = {
            item.where: replace(found[item.where], reference=item.reference) for item in held if item.where in found
        }
    if len(wanted) < len(held) or found.keys() != wanted:
        what = "the held-out rows cannot be given to another model as the run prepared them"
        raise DataError(what, where=str(run.path), fix="name data: rows that both models can read")
    return [found[item.where] for item in held]


def _kept(run: RunFolder) -> Prepared | None:
    """The prepared data of a run, where it still lies: known by its content and by which rows it holds out.

    The same content is prepared several times where recipes hold out other rows of it.
    """
    wanted, held = _fingerprint(run), _held_places(run.ledger)
    for place in (run.path / "data", cache.root()):
        for key in place.glob("*/key.json"):
            found = Prepared(key.parent)
            same = wanted is not None and found.facts.get("fingerprint") == wanted
            if same and (held is None or _held_places(found.ledger_path) == held):
                return found
    return None


def _held_places(path: Path) -> list[str] | None:
    """Where the held-out rows of a ledger stand; None where it cannot be read."""
    from tunekit.data.ledger import Ledger

    try:
        ledger = Ledger.load(path)
    except (OSError, ValueError, KeyError):
        return None
    return sorted(str(ledger[n].origin) for n in range(len(ledger)) if ledger[n].split == "eval")


def _again(run: RunFolder, screen: Screen, place: Path) -> Prepared:
    """A run's data, read and prepared once more, as its method wants it."""
    plan = Plan.load(run.plan)
    inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
    fix = "put its sources back as they were, or name data"
    try:
        found = prepare(plan.recipe, inputs.reader, inputs.fitter, screen, place)
        further = _further(plan)
        found = further(inputs, found, screen, place) if further else found
    except TunekitError as error:
        what = f"the run's data cannot be read again: {error}"
        raise DataError(what, where=str(run.path), fix=fix) from error
    wanted = _fingerprint(run)
    if wanted is not None and found.facts["fingerprint"] != wanted:
        what = "the run's data is not what it was: rows that it trained on may be among those held out now"
        raise DataError(what, where=str(run.path), fix=fix)
    return found


def _further(plan: Plan) -> Any:
    """What the run's method makes of prepared data, or None."""
    return getattr(METHODS.load(plan.method), "prepare", None)


def _written(run: RunFolder, plan: Plan, split: types.Split) -> dict[str, list[str]] | None:
    """`learnt.written_answers` of a run; answers that are kept no longer are written again.

    Raises:
        TunekitError: they cannot be.
    """
    if _further(plan) is None or material_of(plan.recipe) != "prompts":
        return None
    with TemporaryDirectory() as place:
        prepared = _kept(run) or _again(run, Silent(), Path(place))
        return written_answers(prepared, Inputs(plan.recipe, Path(plan.recipe_folder)).tokenizer, split)


def _fingerprint(run: RunFolder) -> str | None:
    """Of the run's prepared data; None where it is not known: a stream's stands for the rows that it trained on."""
    streamed = Plan.load(run.plan).recipe.data.streaming
    data = read_record(run).data if run.record.exists() and not streamed else None
    return data.fingerprint if data is not None else None


def training_texts(run: RunFolder | None, sources: Sequence[SourceBlock], base: Path) -> Iterator[tuple[str, str]]:
    """Every text that a model was trained on, message by message, with ``file:line`` of its row.

    A run's rows are those of its sources that its ledger does not name as held out; their answers are those that its
    method wrote, if it did.

    Raises:
        TunekitError: the sources are not there any more or not what they were, or the ledger cannot be read.
    """
    held, written = frozenset[str](), None
    if run is not None:
        plan = Plan.load(run.plan)
        sources, base = plan.recipe.data.train, Path(plan.recipe_folder)
        _check_sources(run, sources, base)
        places = _held_places(run.ledger)
        if places is None:
            raise DataError("the run's ledger cannot be read", where=str(run.ledger))
        held, written = frozenset(places), _written(run, plan, "train")
    material = material_of(plan.recipe) if run is not None else "texts"
    for origin, learnt in ExampleReader(base, material).learnt(sources):
        own = None if written is None else written.get(str(origin), ())
        for example in conversations(learnt, own) if str(origin) not in held else ():
            turns = example.messages
            shown = "\n".join(f"{turn.role}: {turn.content}" for turn in turns[:-1])  # as a prompt of several turns
            for text in [turn.content for turn in turns] + [shown] * (len(turns) > 2) or [example.text]:
                yield text, str(origin)


def _check_sources(run: RunFolder, sources: Sequence[SourceBlock], base: Path) -> None:
    """Compares a run's sources with those that its data was prepared from, where that still lies."""
    found = _kept(run)
    then = json.loads((found.folder / "key.json").read_text(encoding="utf-8"))["rows"]["train"] if found else []
    if then and then != json.loads(json.dumps(ExampleReader(base).fingerprint(sources))):
        raise DataError("the run's sources are not what they were", where=str(run.path))
