"""A .gguf file and a Modelfile for Ollama, whose template says what the model's own says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from tunekit.compress.source import Source
from tunekit.core.errors import UserError
from tunekit.core.files import write_atomic

KINDS = ("q8_0", "f16", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
_USER, _ASSISTANT, _SYSTEM = ("\u2402user\u2403", "\u2402assistant\u2403", "\u2402system\u2403")
_MARKS = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM}
_TALKS = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


@dataclass(frozen=True)
class Pieces:
    """A chat template taken apart.

    Args:
        beginning: before everything.
        unruled: before a conversation that has no system turn.
        around: by role, what stands before and after what is said.
        invitation: what asks for an answer.
    """

    beginning: str
    unruled: str
    around: Mapping[str, tuple[str, str]]
    invitation: str

    def write(self, roles: Sequence[str]) -> str:
        """A conversation of marks, which ends with the invitation."""
        turns = [self.around[role][0] + _MARKS[role] + self.around[role][1] for role in roles]
        rule = "" if roles[0] == "system" else self.unruled
        return self.beginning + rule + "".join(turns) + self.invitation


def finish(source: Source, folder: Path) -> None:
    """Writes the Modelfile.

    Raises:
        UserError: the chat template is none whose turns are each the same wherever they stand.
    """
    weights = next(folder.glob("*.gguf"))
    write_atomic(folder / "Modelfile", modelfile(weights.name, template(source.tokenizer), stops(source)))


def use(folder: Path) -> str:
    """How it is put in place and run."""
    return shlex.join(["ollama", "create", folder.name, "-f", str(folder / "Modelfile")])


def stops(source: Source) -> list[str]:
    """The texts that end a turn: those of the ids at which the model stops.

    Raises:
        UserError: one of them cannot be written into a Modelfile.
    """
    path = source.folder / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    ids = found if isinstance(found, list) else [found if found is not None else source.tokenizer.eos_token_id]
    texts = [str(source.tokenizer.decode([token])) for token in ids if token is not None]
    unsayable = next((text for text in texts if '"' in text or not text), None)
    if unsayable is not None:
        raise UserError(f"an answer ends at the token {unsayable!r}, which a Modelfile cannot say",
                        fix="export gguf: it carries the ids themselves")  # fmt: skip
    return texts


def modelfile(weights: str, words: str, ends: list[str]) -> str:
    """The Modelfile's text.

    Args:
        weights: name of the .gguf file beside it.
        words: the template in Ollama's language.
        ends: texts that end a turn.
    """
    lines = [f"FROM ./{weights}", f'TEMPLATE """{words}"""', *(f'PARAMETER stop "{end}"' for end in ends)]
    return "\n".join(lines) + "\n"


def template(tokenizer: Any) -> str:
    """The chat template in Ollama's language, proven on conversations of several lengths and with a system turn.

    Raises:
        UserError: there is none, or a turn is written in another way where it stands elsewhere.
    """
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template", fix="export gguf, and prompt it with plain text")
    pieces = taken_apart(tokenizer)
    for roles in _TALKS:
        if "system" in roles and "system" not in pieces.around:
            continue
        if pieces.write(roles) != _written(tokenizer, roles, invited=True):
            raise _unlike()
    led = _led(tokenizer)
    own = bool(led) and not pieces.beginning and any(before.startswith(led) for before, _ in pieces.around.values())
    turns = "".join(
        f'{{{{ if eq .Role "{role}" }}}}{_opening(before, led if own else "")}{{{{ .Content }}}}{_quoted(after)}'
        "{{ end }}"
        for role, (before, after) in pieces.around.items()
    )
    unruled = ""
    if pieces.unruled:
        unruled = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_quoted(pieces.unruled)}{{{{ end }}}}'
    every = f"{{{{ range {'$i, $_ := ' if own else ''}.Messages }}}}{turns}{{{{ end }}}}"
    return f"{_quoted(pieces.beginning.removeprefix(led))}{unruled}{every}{_quoted(pieces.invitation)}"


def _led(tokenizer: Any) -> str:
    """The token that llama.cpp puts before every text itself, as the tokenizer does; empty where it puts none."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if tokenizer.bos_token and ids[:1] == [tokenizer.bos_token_id] else ""


def _opening(before: str, led: str) -> str:
    """What stands before a turn's words; a token that begins every turn is left out at the very front."""
    if not led or not before.startswith(led):
        return _quoted(before)
    return f"{{{{ if $i }}}}{_quoted(led)}{{{{ end }}}}{_quoted(before.removeprefix(led))}"


def taken_apart(tokenizer: Any) -> Pieces:
    """What a template writes around each role's words, found by marks in their place.

    Raises:
        UserError: a turn is left out, or written in another way where it stands elsewhere.
    """
    alone, talk = _written(tokenizer, ("user",)), _written(tokenizer, ("user", "assistant", "user"))
    asked = _written(tokenizer, ("user",), invited=True)
    if not asked.startswith(alone) or alone.count(_USER) != 1 or talk.count(_USER) != 2 or talk.count(_ASSISTANT) != 1:
        raise _unlike()
    opening, after_user = alone.split(_USER)
    first, middle, last = talk.split(_USER)
    before_answer, after_answer = middle.split(_ASSISTANT)
    if first != opening or last != after_user or not before_answer.startswith(after_user):
        raise _unlike()
    before_user = _before_user(opening, after_answer, after_user, tokenizer.bos_token or "")
    start = opening[: len(opening) - len(before_user)]
    around = {
        "user": (before_user, after_user),
        "assistant": (before_answer[len(after_user) :], after_answer[: len(after_answer) - len(before_user)]),
    }
    beginning, unruled = start, ""
    ruled = _ruled(tokenizer, before_user + _USER + after_user)
    if ruled is not None:
        shared = start if ruled[0].startswith(start) else _common_start(start, tokenizer.bos_token or "")
        beginning, unruled = shared, start[len(shared) :]
        around["system"] = (ruled[0][len(shared) :], ruled[1])
    return Pieces(beginning, unruled, around, asked[len(alone) :])


def _before_user(opening: str, after_answer: str, after_user: str, bos: str) -> str:
    """What stands before each user turn: the end of what opens the first one and of what follows an answer.

    BOS is a token of its own: its last letters may be those of a token that ends a turn, as in <s> and </s>.
    """
    if after_answer.endswith(opening):
        return opening
    shared = _common_end(opening.removeprefix(bos), after_answer)
    return (shared.rpartition(after_user)[2] if after_user else "") or shared


def _ruled(tokenizer: Any, turn: str) -> tuple[str, str] | None:
    """What stands before and after a system turn's words; None where the template knows no such turn.

    Raises:
        UserError: it is written into another turn.
    """
    from jinja2 import TemplateError

    try:
        written = _written(tokenizer, ("system", "user"))
    except TemplateError:  # it refuses the role in its own words
        return None
    if written.count(_SYSTEM) != 1 or not written.endswith(turn):
        raise _unlike()
    before, after = written[: len(written) - len(turn)].split(_SYSTEM)
    return before, after


def _written(tokenizer: Any, roles: Sequence[str], *, invited: bool = False) -> str:
    turns = [{"role": role, "content": _MARKS[role]} for role in roles]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=invited))


def _quoted(text: str) -> str:
    """Literal text: Ollama's own braces and a Modelfile's quotes are kept apart."""
    text = text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
    return text[:-1] + '{{ "{" }}' if text.endswith("{") else text  # before an action it would open another


def _common_start(one: str, other: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _unlike() -> UserError:
    return UserError(
        "the chat template writes a turn in another way where it stands elsewhere, which Ollama's language cannot say",
        fix="export gguf: llama.cpp runs the model's own template",
    )
