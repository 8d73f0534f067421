"""Pairs of answers for a task that compares them: what judges, and the rows as a reward model was trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.core.types import IGNORED
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import TokenFacts
from tunekit.data.groups import make_fitter
from tunekit.data.render import Renderer
from tunekit.evaluate.pairs import PairItem
from tunekit.exam.rows import WHOLE, Tally
from tunekit.model.tokenizer import tokenizer_hash
from tunekit.recipe.schema import SourceBlock

READS = "pairs"
"""What a task reads that compares answers: the one kind that a reward model can do."""
By = Literal["likelihood", "reward"]


def by_of(wanted: By | None, scores: bool, label: str, model: str) -> By:
    """What judges a task's pairs.

    Args:
        wanted: the task's ``by``.
        scores: whether the model is a reward model.
        label: of the task.
        model: its name.

    Raises:
        UserError: the model gives another thing than is wanted.
    """
    given: By = "reward" if scores else "likelihood"
    if wanted in (None, given):
        return given
    if scores:
        what = f"by: likelihood needs a model that writes, and '{model}' is a reward model"
    else:
        what = f"by: reward needs a reward model, and '{model}' is none: it writes, and has no head that scores"
    raise UserError(what, where=label, fix=f"by: {given}, or name another model")


def check_heads(kinds: Sequence[tuple[str, str]], tuned: tuple[str, bool], baseline: tuple[str, bool] | None) -> None:
    """Refuses tasks that a reward model cannot do, and the comparison of a reward model with one that writes.

    Args:
        kinds: (name, what it reads) of each task.
        tuned: name of the model, and whether it is a reward model.
        baseline: the same of what it is compared with.

    Raises:
        UserError: each task is named.
    """
    (name, scores), fix = tuned, "take the task out: a reward model can do `preference` alone"
    what = f"'{name}' is a reward model: it scores answers, and writes none, which this task needs"
    raise_all(UserError, [Problem(what, label, fix) for label, reads in kinds if scores and reads != READS])
    if baseline is not None and baseline[1] != scores:
        one, other = (name, baseline[0]) if scores else (baseline[0], name)
        what = f"'{one}' is a reward model, and '{other}' writes: a score and a likelihood have no common unit"
        raise UserError(what, where="baseline", fix="compare two reward models, or two that write; or baseline: null")


def judged(
    sources: Sequence[SourceBlock], base: Path, tokenizer: Any, columns: Mapping[str, str], tally: Tally
) -> Iterator[PairItem]:
    """Rows read, rendered and encoded as `tunekit reward` does, whole.

    Args:
        sources: where they are.
        base: folder where relative paths start.
        tokenizer: the reward model's.
        columns: of the rows, beside those that the sources name.
        tally: counts what is read and lost.

    Raises:
        DataError: no format of preference data fits the rows.
        UserError: the tokenizer has no chat template.
    """
    facts = TokenFacts(tokenizer_hash(tokenizer), len(tokenizer), tokenizer.bos_token_id)
    fitter = make_fitter("pairs", Renderer(tokenizer), facts, WHOLE, "drop", isolated=True)
    named = [source.model_copy(update={"columns": {**source.columns, **columns}}) for source in sources]
    for origin, learnt in ExampleReader(base, "pairs").learnt(named):
        tally.read += 1
        (found,) = [learnt] if isinstance(learnt, str) else fitter.encode([learnt])
        if isinstance(found, str) or not found.examples:
            tally.lost.append(Problem(found if isinstance(found, str) else found.lost, str(origin)))
            continue
        if found.partly:
            tally.lost.append(Problem(found.partly, str(origin)))
        yield from (_item(row, str(origin)) for row in found.examples)


def _item(row: Mapping[str, Any], where: str) -> PairItem:
    """The two answers of a row that was encoded as one beginning and what goes on from it."""
    ids, trained = tuple(row["input_ids"]), tuple(label != IGNORED for label in row["labels"])
    begin, (first, second) = row["prompt_tokens"], row["branches"]
    cut = begin + first
    assert len(ids) == cut + second, (len(ids), begin, row["branches"])
    return PairItem(
        input_ids=ids[:cut],
        trained=trained[:cut],
        prompt_ids=ids[:begin],
        prompt_text=row["prompt"],
        reference=row["reference"],
        where=where,
        rejected_ids=ids[:begin] + ids[cut:],
        rejected_trained=trained[:begin] + trained[cut:],
    )
