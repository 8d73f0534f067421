"""A tokenizer of whole words whose ids can be read, and fitters and preparations of preference data with it."""

import json
from pathlib import Path

from preparation_for_tests import recipe

from tunekit.core.progress import Silent
from tunekit.core.types import Example, Message
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import TokenFacts
from tunekit.data.groups import make_fitter
from tunekit.data.ledger import Ledger
from tunekit.data.prepare import prepare
from tunekit.data.render import Renderer

WORDS = ["<u>", "<a>", "<e>", "hi", "yes", "no", "well", "why", "<s>", "?"]  # the ids are 0, 1, 2, ...
TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}> {{ m.content }} <e> {% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
# the question is written in another way when the answer is "no": the answers share less than the prompt
TWISTED = (
    "{% for m in messages %}{% if m.role == 'user' %}<u> {{ m.content }} {% if messages[-1].content == 'no' %}well "
    "{% endif %}<e> {% else %}<a> {% generation %}{{ m.content }} <e>{% endgeneration %}{% endif %}{% endfor %}"
)


def words(template=TEMPLATE):
    """The tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="?"))
    inner.pre_tokenizer = WhitespaceSplit()
    others = ["<u>", "<a>", "<s>"]
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", additional_special_tokens=others)
    made.chat_template = template
    return made


def talk(*texts, **more):
    """A conversation that user and assistant speak in turn."""
    roles = ("user", "assistant")
    return Example(tuple(Message(roles[at % 2], text) for at, text in enumerate(texts)), **more)


def fitter(material, max_length=64, overlong="truncate", tokenizer=None, loss_on="assistant"):
    """The fitter of a material."""
    tokenizer = tokenizer or words()
    facts = TokenFacts("tokens", len(tokenizer), tokenizer.bos_token_id)
    return make_fitter(material, Renderer(tokenizer, loss_on=loss_on), facts, max_length, overlong, True)


class Made:
    """Prepared data of a material from rows: the ledger, the summary, the final examples."""

    def __init__(self, material, rows, folder: Path, tokenizer=None, **sets) -> None:
        path = rows if isinstance(rows, Path) else folder / "rows.jsonl"
        if not isinstance(rows, Path):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        wanted = recipe(path, **sets)
        data = wanted.data
        self.fitter = fitter(material, data.max_length, data.overlong, tokenizer, data.loss_on)
        self.reader = ExampleReader(folder, material)
        self.recipe = wanted
        self.prepared = prepare(wanted, self.reader, self.fitter, Silent(), folder / "own")
        self.ledger = list(Ledger.load(self.prepared.ledger_path))
        self.summary = self.prepared.facts["summary"]

    def rows(self, split="train"):
        data = self.prepared.dataset(split)
        return [] if data is None else list(data)

    def lines(self, split="train"):
        return sorted(self.ledger[n].origin.line for row in self.rows(split) for n in row["rows"])
