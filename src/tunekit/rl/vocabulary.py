"""Whether two models speak of the same tokens: their distributions can be compared token by token only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit.core.errors import UserError
from tunekit.data.fit import Fitter, TokenFacts, turn_end
from tunekit.data.render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL = ("eos_token", "bos_token")  # where a text ends and begins; padding is ignored by position
_PROBE = "It's 12,345.67 km;\n\n\tdef f(x):  return x\n Ünïcödé, 東京 🙂 don't"
"""Digits, spaces, contractions and rare characters: where tokenizers of one vocabulary cut differently."""
_LONG = 1 << 20
_OTHER = "distil from a teacher of the same family, whose tokenizer is the student's"


def check_same_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Checks that the tokens' ids, where texts and turns end, and how a text is cut are alike on both sides.

    The chat templates may differ otherwise: both models are given the student's tokens. A side without a template has
    no end of turn to differ in.

    Raises:
        UserError: they are not; with the first difference, and what to do about it.
    """
    _check_tokens(student, teacher)
    for name in _SPECIAL:
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            fix = "set model.tokenizer to the teacher's: its tokens are the same"
            raise UserError(f"the {name} of the student is {_shown(ours)}, of the teacher {_shown(theirs)}", fix=fix)
    cuts = [tokenizer(_PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (student, teacher)]
    if cuts[0] != cuts[1]:
        at = next((at for at, pair in enumerate(zip(*cuts)) if pair[0] != pair[1]), min(map(len, cuts)))
        begun = student.decode(cuts[0][:at])
        words = f"the student's and the teacher's tokenizer cut text differently, first after {begun!r}"
        raise UserError(words, fix="set model.tokenizer to the teacher's: its tokens are the same")
    ends = [_turn_end(tokenizer) for tokenizer in (student, teacher)]
    if None not in ends and ends[0] != ends[1]:
        ours, theirs = (_shown(student.convert_ids_to_tokens(end)) for end in ends)
        fix = (
            "set model.chat_template to a .jinja file with the teacher's template, or model.tokenizer to the teacher's"
        )
        raise UserError(f"a turn ends with {ours} in the student's chat template, with {theirs} in the teacher's",
                        fix=fix)  # fmt: skip


def _check_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """By id, those that were added included.

    Raises:
        UserError: an id is another token's, or has a token on one side only.
    """
    ours, theirs = ({id_: token for token, id_ in each.get_vocab().items()} for each in (student, teacher))
    if ours == theirs:
        return
    first = min(id_ for id_ in ours.keys() | theirs.keys() if ours.get(id_) != theirs.get(id_))
    told = f"token {first:,} is {_shown(ours.get(first))} for the student, {_shown(theirs.get(first))} for the teacher"
    words = f"student and teacher have different vocabularies ({len(ours):,} and {len(theirs):,} tokens): {told}"
    fix = _OTHER
    if ours.items() < theirs.items() or theirs.items() < ours.items():
        more, less = ("student", "teacher") if len(ours) > len(theirs) else ("teacher", "student")
        fix = f"the {more} only has more tokens than the {less}: "
        fix += "leave out model.new_tokens" if more == "student" else "set model.tokenizer to the teacher's"
        fix += f", or {_OTHER}"
    raise UserError(words, fix=fix)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token that ends an assistant turn; None without a chat template."""
    if tokenizer.chat_template is None:
        return None
    facts = TokenFacts("", len(tokenizer), tokenizer.bos_token_id)
    return turn_end(Fitter(Renderer(tokenizer), facts, _LONG, "error", isolated=False))


def _shown(token: str | None) -> str:
    return "none" if token is None else repr(token)
