"""Texts of raw rows as requests: what a task writes, in the tokens that a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.core.errors import DataError
from tunekit.evaluate.contract import Likelihood, Prompt

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Prompter:
    """Writes requests with one tokenizer.

    Args:
        tokenizer: the model's.
        chat: put prompts into the model's chat template, as one user turn; else they are plain text.
    """

    tokenizer: Any
    chat: bool = False

    def likelihood(self, context: str, target: str, where: str = "") -> Likelihood:
        """``target`` scored after ``context``.

        As the lm-evaluation-harness does: white space at the end of the context belongs to the target; the target's
        tokens are those of the whole text after as many as the context has by itself. An empty context is the
        tokenizer's first token (or its end token, where it has none). Prompt and answer of a chat are tokenized apart.

        Raises:
            DataError: the target has no tokens.
        """
        if self.chat:
            before = self.ids_of([{"role": "user", "content": context}])
            after = tuple(self._plain(target))
        elif stripped := context.rstrip():
            before = tuple(self._special(stripped))
            after = tuple(self._special(stripped + context[len(stripped) :] + target)[len(before) :])
        else:
            first = self.tokenizer.bos_token_id
            before = (self.tokenizer.eos_token_id if first is None else first,)
            after = tuple(self._plain(context + target))
        if not after:
            raise DataError(f"the text to score has no tokens: {target!r}", where=where)
        return Likelihood(before + after, (False,) * len(before) + (True,) * len(after))

    def prompt(self, text: str, max_new_tokens: int, **options: Any) -> Prompt:
        """A prompt to go on from; ``options`` are those of `Prompt`."""
        messages = (("user", text),)
        return Prompt(self._ids(text), max_new_tokens, messages=messages, **options)

    def _ids(self, text: str) -> tuple[int, ...]:
        if self.tokenizer is None:  # the engine takes text
            return ()
        return self.ids_of([{"role": "user", "content": text}]) if self.chat else tuple(self._special(text))

    def ids_of(self, messages: Messages) -> tuple[int, ...]:
        """A conversation in the model's template, up to where the answer begins.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise DataError("the model has no chat template", fix="chat: false")
        rendered = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return tuple(self._plain(rendered))

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _special(self, text: str) -> list[int]:
        begun = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not begun)["input_ids"]
        return ids
