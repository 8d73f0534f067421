"""The one way a conversation becomes text, with its label mask: training, evaluation, chat and serving render here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.core.registry import did_you_mean
from tunekit.core.types import Example, LossOn, Message, RowError
from tunekit.data.literals import Placeholders, Span, added_tokens, any_of, control_tokens, hide, moved, plain
from tunekit.data.locate import PROBE, PROBE_TOOLS, Locator, calls_scan, learn
from tunekit.data.marks import enclose, marked_turns
from tunekit.data.mask import check_written, trained_spans
from tunekit.data.spans import Dicts, Facts, Turn, assistants, scan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"
_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered example. All spans are characters ``[start, end)`` of ``text``.

    ``turns`` are the assistant turns (empty when rendered for generation), ``trained`` what is learned, in order and
    without overlap, ``literals`` the control-token strings that came from the data and must be encoded as plain text.
    ``document``: plain text without a template; the tokenizer's own beginning and the end-of-sequence token are added.
    """

    text: str
    turns: tuple[Turn, ...] = ()
    trained: tuple[Span, ...] = ()
    literals: tuple[Span, ...] = ()
    document: bool = False


def named_template(name_or_path: str) -> str:
    """The text of a built-in chat template (``chatml``) or of a ``.jinja`` file.

    Raises:
        UserError: there is no such template; the nearest name is given.
    """
    built_in = {path.stem: path for path in TEMPLATES.glob("*.jinja")}
    path = built_in.get(name_or_path, Path(name_or_path))
    if path.suffix == ".jinja" and path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix == ".jinja" or "/" in name_or_path:
        raise UserError(f"there is no chat template file '{name_or_path}'", fix="check model.chat_template")
    hint = did_you_mean(name_or_path, built_in)
    raise UserError(f"unknown chat template '{name_or_path}'", fix=f"{hint} A .jinja file will do as well.")


class Renderer:
    """Renders examples with one chat template, through transformers' own sandboxed renderer.

    Args:
        tokenizer: its special tokens are passed to the template; its template is used unless another is given.
        template: the text of a Jinja template; None for the tokenizer's own.
        loss_on: which text is trained when a message does not say so itself: every assistant turn, the last one only,
            or the whole rendered text.

    Raises:
        UserError: the template is not valid Jinja.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None = None, loss_on: LossOn = "assistant"
    ) -> None:
        self.tokenizer = tokenizer
        self.template: str | Mapping[str, str] | None = template or tokenizer.chat_template
        self.loss_on = loss_on
        self._special = dict(tokenizer.special_tokens_map)
        self._control = any_of(control_tokens(tokenizer))
        self._added = any_of(added_tokens(tokenizer))
        bos = tokenizer.bos_token or ""
        self._bos = bos if bos != tokenizer.eos_token else ""
        self._facts: dict[str, Facts] = {}
        for text in (self.template,) if isinstance(self.template, str) else (self.template or {}).values():
            self._check(text)

    @property
    def template_hash(self) -> str:
        """The SHA-256 of the template's text in hexadecimal; of nothing when there is no template."""
        text = self.template if isinstance(self.template, str) else json.dumps(self.template or "", sort_keys=True)
        return hashlib.sha256(("" if self.template is None else text).encode("utf-8", "surrogatepass")).hexdigest()

    def facts(self, tools: Sequence[Mapping[str, Any]] = ()) -> Facts:
        """What is known of the template that conversations with these tools use; learned on first use.

        Raises:
            UserError: the template's generation marks do not hold the assistant's answers.
        """
        template = self._template(tools)
        if template not in self._facts:
            self._facts[template] = self._learn(template)
        return self._facts[template]

    def learning(self, loss_on: LossOn) -> Renderer:
        """The same renderer for another part of the text to be trained."""
        other = copy(self)
        other.loss_on = loss_on
        return other

    def render(self, example: Example, generation_prompt: bool = False) -> Rendered:
        """Renders an example.

        Args:
            example: a conversation, or plain text.
            generation_prompt: end with the prompt for the next assistant turn; no turns are looked for then.

        Raises:
            RowError: the template refuses the conversation, or does not tell where a turn to be trained stands.
            UserError: a conversation, and there is no chat template.
        """
        if not example.messages:
            return self._document(example.text)
        value = {"messages": [message_dict(m) for m in example.messages], "tools": plain(example.tools)}
        value, held = hide(value, self._control)
        messages, tools = value["messages"], value["tools"] or None
        template = self._template(example.tools)
        text, marks = self._draw(template, messages, tools, generation_prompt)
        if generation_prompt:
            whole, literals, _ = held.restore(text)
            return Rendered(whole, literals=literals)
        locator = self._locator(template, tools, self.facts(example.tools))
        turns = self._turns(text, marks, messages, locator)
        check_written(text, messages, turns)
        trained = trained_spans(text, example.messages, messages, turns, self.loss_on, locator)
        return _restored(text, turns, trained, held)

    def render_prompt(self, example: Example) -> Rendered:
        """What generation is prompted with: everything before the last assistant turn, and the generation prompt.

        A conversation that does not end with an assistant turn is taken whole.
        """
        messages = example.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages:
            raise RowError("there is no message before the assistant's turn to prompt with")
        return self.render(Example(messages, example.tools), generation_prompt=True)

    def prompt(self, example: Example) -> str:
        """The text of ``render_prompt``."""
        return self.render_prompt(example).text

    def _document(self, text: str) -> Rendered:
        literals = tuple(match.span() for match in self._control.finditer(text))
        return Rendered(text, (), ((0, len(text)),) if text else (), literals, document=True)

    def _template(self, tools: Sequence[Mapping[str, Any]]) -> str:
        if isinstance(self.template, str):
            return self.template
        if self.template is None:
            raise UserError("the tokenizer has no chat template, and the data holds conversations",
                            fix="set model.chat_template: chatml, or to a .jinja file")  # fmt: skip
        name = "tool_use" if tools and "tool_use" in self.template else "default"
        if name not in self.template:
            known = ", ".join(sorted(self.template))
            raise UserError(f"the tokenizer has several chat templates ({known}) and none is called default",
                            fix="set model.chat_template to a .jinja file")  # fmt: skip
        return self.template[name]

    def _draw(self, template: str, messages: Dicts, tools: Any, generation_prompt: bool) -> tuple[str, list[Span]]:
        """Text and generation marks of one conversation."""
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=_marks_answers(template),
                add_generation_prompt=generation_prompt,
                **self._special,
            )
        except TemplateSyntaxError as error:
            where = f"line {error.lineno} of the chat template"
            raise UserError(f"the chat template is not valid Jinja: {error.message}", where=where) from error
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise RowError(f"the chat template refuses it: {error}") from error
        return texts[0], marks[0] if marks else []

    def _locator(self, template: str, tools: Any, facts: Facts) -> Locator:
        return Locator(lambda m, g: self._draw(template, m, tools, g)[0], self._added, self._bos, facts)

    def _check(self, template: str) -> None:
        """Renders one question; whether the template likes it does not matter here, only that it is valid."""
        with suppress(RowError):
            self._draw(template, PROBE[:1], None, True)

    def _learn(self, template: str) -> Facts:
        facts = learn(self._locator(template, None, Facts()))
        facts = replace(facts, calls=calls_scan(self._locator(template, plain(PROBE_TOOLS), facts)))
        if _marks_answers(template) and facts.tail:
            text, marks = self._draw(template, PROBE, None, False)
            if not enclose(text, marks, PROBE):
                raise UserError(
                    "the {% generation %} marks of the chat template do not hold the assistant's answers",
                    fix="put them around each answer and its end-of-turn token, or take them out",
                )
        return facts

    def _turns(self, text: str, marks: list[Span], messages: Dicts, locator: Locator) -> list[Turn]:
        if not assistants(messages):
            return []
        if marks:
            return marked_turns(text, marks, messages, locator)
        found = scan(text, messages, locator.facts)
        return locator.turns(text, messages) if found is None else found


@cache
def _marks_answers(template: str) -> bool:
    return _MARK.search(template) is not None


def message_dict(message: Message) -> dict[str, Any]:
    """A message as templates expect it; absent fields are left out, and reasoning has both names that are in use."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        value |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls:
        value["tool_calls"] = plain(message.tool_calls)
    if message.name is not None:
        value["name"] = message.name
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value


def _restored(text: str, turns: Sequence[Turn], trained: Sequence[Span], held: Placeholders) -> Rendered:
    """Everything in terms of the text without placeholders."""
    whole, literals, shifts = held.restore(text)
    if not shifts:
        return Rendered(whole, tuple(turns), tuple(trained))

    def span(old: Span) -> Span:
        return moved(old[0], shifts), moved(old[1], shifts)

    there = tuple(Turn(t.message, tuple(map(span, t.spans)), span(t.stop) if t.stop else None) for t in turns)
    return Rendered(whole, there, tuple(map(span, trained)), literals)
