"""Which characters of a rendered conversation are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunekit.core.types import LossOn, Message, RowError
from tunekit.data.literals import Span
from tunekit.data.locate import Locator, named
from tunekit.data.spans import Dicts, Turn, assistants, called


def check_written(text: str, messages: Dicts, turns: Sequence[Turn]) -> None:
    """Refuses a rendering that lost what an assistant turn says beside its content.

    Raises:
        RowError: the template wrote no tool calls, or left out the reasoning of the last turn (that of earlier turns
            many templates leave out on purpose).
    """
    for turn in turns:
        message = messages[turn.message]
        body = text[turn.start : turn.end]
        if not all(name in body for name in called(message)):
            raise RowError(f"{named(turn.message)}: the chat template does not write its tool calls")
        if turn is turns[-1] and (message.get("reasoning_content") or "").strip() not in body:
            raise RowError(f"{named(turn.message)}: the chat template does not write its reasoning")


def trained_spans(
    text: str, given: Sequence[Message], messages: Dicts, turns: Sequence[Turn], loss_on: LossOn, locator: Locator
) -> list[Span]:
    """The characters to train: what ``loss_on`` says, unless a message says otherwise itself.

    Raises:
        RowError: a turn is to be trained that is no assistant turn or that the template's marks leave out, or one is
            to be left out whose place the template does not tell.
    """
    by_message = {turn.message: turn for turn in turns}
    last = max(assistants(messages), default=-1)
    wanted: list[Span] = []
    left_out: list[Span] = []
    for index, message in enumerate(given):
        assistant = message.role == "assistant"
        if message.train and not assistant:
            raise RowError(f"{named(index)} ({message.role}) asks to be trained; only assistant turns can be")
        train = message.train
        if train is None:
            train = assistant and (loss_on != "last_turn" or index == last)
        if assistant and index not in by_message and (train or loss_on == "all"):
            raise RowError(f"{named(index)}: the chat template's generation marks leave this assistant turn out")
        if assistant and train:
            wanted += by_message[index].spans
        elif message.train is False and loss_on == "all":
            left_out.append(_place(text, messages, index, by_message, locator))
    return wanted if loss_on != "all" else _without((0, len(text)), left_out)


def _place(text: str, messages: Dicts, index: int, turns: Mapping[int, Turn], locator: Locator) -> Span:
    if index in turns:
        return turns[index].start, turns[index].end
    region = locator.region(text, messages, index)
    if not (region.exact_begin and region.exact_end):
        raise RowError(f"{named(index)} is not to be trained, but the chat template does not tell its place")
    return region.begin, region.end


def _without(whole: Span, holes: Sequence[Span]) -> list[Span]:
    begin, rest = whole[0], []
    for hole in sorted(holes):
        rest.append((begin, hole[0]))
        begin = hole[1]
    return [(start, end) for start, end in [*rest, (begin, whole[1])] if start < end]
