"""The same text, the same tokens: what transformers and llama.cpp read is compared on every file that is made."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunekit.core.errors import UserError
from tunekit.evaluate.gguf_file import Opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRAWN, SEED = 200, 0
TEXTS = (
    "Hello, world!",
    "hello  world",
    "   three before, two behind  ",
    "tab\tand\ttabs\t\tthere",
    "a\nb\n\nc\n\n\nd",
    "\n",
    "\n\n",
    " \n \n",
    "line\r\nline\r\n\r\nend",
    "trailing newline\n",
    "I'm we've YOU'RE it'd they'll DON'T o'clock 'tis",
    "x=1;y+=22;z**=333 // 4444 != 55555",
    "3.14159 1,234,567.89 0x1F 1e-10 50% $9.99 №5 ½ ² Ⅷ ٣٤٥",
    "def f(a, b=None):\n    return {'k': [a, b]}\n\n\tpass\n",
    "<b>html</b> &amp; {{ jinja }} {% if x %} [link](http://a.b/c?d=e&f=g#h)",
    "CamelCaseWord snake_case_word kebab-case-word SCREAMING",
    "!!! ??? ... --- ___ ### *** ``` ~~~ @user #tag ///",
    "naïve café Straße ÅNGSTRÖM Øresund ţară İstanbul",
    "Привет, мир! Ёлка и щи.",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "你好,世界!我们今天去学校。",
    "今天是2024年3月15日,星期五。",
    "こんにちは世界、カタカナとひらがな。",
    "안녕하세요 세계",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया",
    "Mixed 中文 and English和数字123混合",
    "他说:“好。”\n她说:「不。」",
    "😀 😃😄 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☃",
    "zero\u200bwidth\u200djoin soft\u00adhyphen",
    "no\u00a0break\u2009thin\u3000wide",
    "\ufefffirst",
    "line\u2028sep\u2029par\u0085nel",
    "control\x00\x01\x1b[0m\x7f",
    "\ufffd�",
    "private \uf04a use",
    "𝕄𝕒𝕥𝕙 𝟙𝟚𝟛 ∑∫√≠≤∞",
    "</s> <unk> <s> <pad> [INST] <|none_of_ours|>",
    "ﬁ ligature ﷺ",
    "a" * 70,
    "=" * 70,
    " " * 40 + "x",
    "word " * 20,
)
"""What users write: contractions, digits, spaces of all kinds, scripts, emoji, code, texts of foreign tokens."""


def texts_for(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """`TEXTS`, a chat in the model's own template, each special token among words, and tokens drawn at random."""
    from jinja2 import TemplateError

    yield from TEXTS
    for special in tokenizer.all_special_tokens:
        yield f"{special}one{special} two {special}{special}\n{special}"
    talk = [{"role": "user", "content": "Hi there,\n\nwho's 12?"}, {"role": "assistant", "content": "It's me.\n"}]
    if tokenizer.chat_template:
        try:
            yield str(tokenizer.apply_chat_template(talk, tokenize=False))
            yield str(tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True))
        except TemplateError:  # it wants other roles
            pass
    draw, ids = random.Random(SEED), sorted(tokenizer.get_vocab().values())
    for _ in range(DRAWN):
        yield str(tokenizer.decode([draw.choice(ids) for _ in range(draw.randint(1, 12))]))


def check(path: Path, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], *, led: bool) -> None:
    """Compares a file's vocabulary with the tokenizer that it was made of.

    Args:
        path: of the .gguf file.
        tokenizer: what transformers reads with.
        stops: ids that end an answer.
        led: compare texts with the BOS token in front only, as chats have it.

    Raises:
        UserError: a text has other tokens, or llama.cpp would not stop where the model does.
    """
    import json

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    composed = (whole.get("normalizer") or {}).get("type") == "NFC"  # which llama.cpp leaves to the writer
    front = str(tokenizer.bos_token) if led else ""
    with Opened(path, words=True) as opened:
        for text in texts_for(tokenizer):
            text = front + (unicodedata.normalize("NFC", text) if composed else text)
            _same(text, list(tokenizer.encode(text, add_special_tokens=False)), opened.tokenize(text))
        if not led:
            _same("Hello", list(tokenizer("Hello")["input_ids"]), opened.tokenize("Hello", around=True))
        missing = sorted(set(stops) - set(opened.stops()))
    if missing:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(missing)))
        raise UserError(f"llama.cpp would not stop at {names}: it is told of three tokens at most", where=path.name,
                        fix="leave fewer eos_token_id in generation_config.json")  # fmt: skip


def _same(text: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        what = f"{ours[at : at + 6]} in transformers, {theirs[at : at + 6]} in llama.cpp, from token {at} on"
        raise UserError(f"llama.cpp reads other tokens than the model was trained on: {text[:60]!r} is {what}",
                        where="tokenizer.json",
                        fix="quantize to a format that transformers reads: nf4, int8, gptq4")  # fmt: skip
