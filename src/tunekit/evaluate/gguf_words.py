"""The vocabulary of a .gguf file in the place of a tokenizer of transformers, for tasks that write from columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.errors import UserError
from tunekit.evaluate.gguf_file import Opened

SAMPLED = 256
"""Tokens by which a tokenizer is compared with a file's vocabulary."""
SAME = 0.9
"""Share of them that must be the same text: some libraries show control characters otherwise."""


class FileTokenizer:
    """What tasks ask of a tokenizer, answered by llama.cpp.

    Args:
        opened: the file.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.name_or_path = opened.name
        self.bos_token_id, self.eos_token_id = opened.ends
        self.bos_token, self.eos_token = (
            None if index is None else opened.text([index], special=True) for index in opened.ends
        )
        self.chat_template = opened.template()

    def __len__(self) -> int:
        return self._opened.vocabulary

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True, **more: Any) -> dict[str, Any]:
        """``input_ids`` of a text, or of several."""
        if isinstance(text, str):
            return {"input_ids": self._opened.tokenize(text, around=add_special_tokens)}
        return {"input_ids": [self._opened.tokenize(one, around=add_special_tokens) for one in text]}

    def decode(self, ids: int | Sequence[int], *, skip_special_tokens: bool = False, **more: Any) -> str:
        """The text of ids, as it is in the tokens."""
        return self._opened.text([ids] if isinstance(ids, int) else ids, special=not skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False, **more: Any
    ) -> str:
        """A conversation as the template inside the file writes it.

        Raises:
            UserError: there is none, or it is not written for this conversation.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        if self.chat_template is None:
            raise UserError(f"there is no chat template in {self.name_or_path}", fix="chat: false")
        try:
            found, _ = render_jinja_template(
                conversations=[list(messages)], chat_template=self.chat_template, bos_token=self.bos_token or "",
                eos_token=self.eos_token or "", add_generation_prompt=add_generation_prompt,
            )  # fmt: skip
        except TemplateError as error:
            raise UserError(f"the chat template of {self.name_or_path} refuses a conversation: {error}") from error
        return str(found[0])


def check_same(opened: Opened, tokenizer: Any) -> None:
    """Compares a tokenizer with a file's vocabulary: another model's would give numbers of no meaning, and no error.

    Raises:
        UserError: it is another one.
    """
    fix = "name that of the model which the file was made of: --baseline SOURCE, or engine: {tokenizer: ...}"
    if len(tokenizer) > opened.vocabulary:
        what = f"the tokenizer has {len(tokenizer):,} tokens, and {opened.name} has {opened.vocabulary:,}"
        raise UserError(f"{what}: it is not that of the file", where="engine", fix=fix)
    pairs = []
    for index in range(0, len(tokenizer), max(1, len(tokenizer) // SAMPLED)):
        own, other = str(tokenizer.decode([index])).strip(), opened.text([index]).strip()
        if own and other and own.isascii() and other.isascii():
            pairs.append((own, other))
    if sum(own == other for own, other in pairs) < SAME * len(pairs):
        own, other = next(pair for pair in pairs if pair[0] != pair[1])
        what = f"the tokenizer is not that of {opened.name}: what it calls {own!r} is {other!r} there"
        raise UserError(what, where="engine", fix=fix)
