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

# Words and characters that the world lacks but a user's own rows are full of. They come once each, after everything of
# the world, and fill the vocabulary up: without them such a row would cost a token a letter.
COMMON_WORDS = """
system user assistant tool name arguments function string number text answer question write read give make take help
please explain summarise describe list because before after about would could should there their which while other
people first second third most more less very many some every never always often between under over through without
within again also both each only same such than then these those when where whose why year month week hour minute
morning evening night home work house water food world country city street family child woman man mother father friend
money price order customer product service email phone address code file data model error result example problem
reason idea word sentence story language English Chinese yes no not can cannot will must may might know think want need
use find tell ask try call feel become leave show hear play run move live believe bring happen provide hold turn start
good better best great large small old young high low long short early late important different possible public able
"""
COMMON_CHARACTERS = (
    "不了在人我他们来个上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
    "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公"
    "此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话"
)


def training_texts() -> Iterator[str]:
    """The texts the merges are learnt from: the world's train split only."""
    yield from (row["text"] for row in rows("text", "train", DOCUMENTS))
    for row in rows("instructions", "train"):
        text, _, question = row["instruction"].rpartition("\n")
        yield "\n".join((question, text, row["answer"]))
    for part in ("chats", "smalltalk"):
        for row in rows(part, "train"):
            yield "\n".join(f"{message['role']}\n{message['content']}" for message in row["messages"])
    yield from (f"{word} {word}" for word in COMMON_WORDS.split())
    yield COMMON_CHARACTERS


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
