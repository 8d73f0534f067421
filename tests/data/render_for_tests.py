"""Tokenizers and conversations that the tests of rendering share. Nothing here is read from outside the repository."""

import re
from functools import cache
from pathlib import Path

from tunekit.core.types import Message
from tunekit.data.render import named_template

TEMPLATES = Path(__file__).parent / "templates_for_tests"
CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
CORPUS = [
    "Hello! How are you today? It is 3. See you. The answer is yes, and the code is { x }.",
    "user assistant system tool 你好 世界 the quick brown fox jumps over the lazy dog",
] * 4


@cache
def byte_level(*more, bos="<s>", eos="</s>"):
    """A byte-level BPE tokenizer, as of GPT-2, Llama 3 and Qwen, that knows the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    tokenizer.add_tokens([*CONTROL, *more], special_tokens=True)
    return tokenizer


@cache
def metaspace(scheme="first"):
    """A BPE tokenizer with byte fallback and ``▁`` for spaces, as of Llama 2 and Mistral, that writes BOS itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", *CONTROL, *bytes_]
    # pieces of the control strings are words of their own, so that they could be joined to one by mistake
    corpus = [*CORPUS, "< s > / im _ end | start eot id of turn header"]
    core.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    fresh = Tokenizer(core.model)
    fresh.pre_tokenizer, fresh.decoder = core.pre_tokenizer, core.decoder
    fresh.add_special_tokens(["<unk>", *CONTROL])
    fresh.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", fresh.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fresh, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def template(name):
    """A template's text; ``marked`` is the built-in ChatML, which has generation marks."""
    return named_template("chatml") if name == "marked" else (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def said(*turns):
    """Messages from ``(role, content)`` or ``(role, content, fields)``."""
    return tuple(Message(role, content, **(fields[0] if fields else {})) for role, content, *fields in turns)


def call(name, **arguments):
    """A tool call."""
    return {"type": "function", "id": "call00001", "function": {"name": name, "arguments": arguments}}


def tool(name):
    """A tool's schema."""
    return {
        "type": "function",
        "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}},
    }


def parse(golden):
    """The text and the marked spans of a golden such as ``user: hi ⟦hello⟧``."""
    text, spans, begin = "", [], 0
    for part in re.split("([⟦⟧])", golden):
        if part == "⟦":
            begin = len(text)
        elif part == "⟧":
            spans.append((begin, len(text)))
        else:
            text += part
    return text, spans
