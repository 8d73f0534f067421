"""Makes the tokenizer of the built-in tiny model from the demo world's training split.

Run it as ``python -m tunekit.model.builtin.make_tokenizer``; it writes the same bytes every time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.files import write_atomic, write_json
from tunekit.data.world import rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER = Path(__file__).parent / "tiny"
VOCABULARY = 2048
DOCUMENTS = 20_000
POSITIONS = 1024

END_OF_TEXT = "<|endoftext|>"  # between documents in pretraining
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"  # also the eos token: generation stops where a turn ends
PADDING = "<|pad|>"  # not the eos token, so that masking padding never masks an end of turn
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, PADDING)

ROLE_NAMES = "system user assistant tool"


def training_texts() -> Iterator[str]:
    """The texts the merges are learnt from: the world's train split only."""
    yield from (row["text"] for row in rows("text", "train", DOCUMENTS))
    for row in rows("instructions", "train"):
        yield "\n".join((row["instruction"], row["input"], row["output"]))
    for part in ("chats", "smalltalk"):
        for row in rows(part, "train"):
            yield "\n".join(f"{message['role']}\n{message['content']}" for message in row["messages"])
    yield from [ROLE_NAMES] * 100


def train_tokenizer() -> Tokenizer:
    """Trains the byte-level BPE; any text can be encoded, and decoding gives it back.

    Every Han character and every digit is a piece of its own: a merge across them would glue whole phrases and numbers
    into single tokens, of which the model could not compose new ones.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """What transformers needs beside the tokenizer itself."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": PADDING,
        "unk_token": None,
        "extra_special_tokens": [TURN_START, END_OF_TEXT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": POSITIONS,
    }


def write(folder: Path) -> None:
    """Trains the tokenizer and writes its two files into ``folder``."""
    content = json.loads(train_tokenizer().to_str())
    write_atomic(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    write_json(folder / "tokenizer_config.json", tokenizer_config())


if __name__ == "__main__":
    write(FOLDER)
