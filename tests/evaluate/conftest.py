"""A tokenizer of characters, a tiny Llama, and rows that ask it for a sum."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

CHARACTERS = "0123456789+=abcdefghij "
SPECIAL = ["<pad>", "<s>", "<end>", "<unk>"]


@dataclass(frozen=True)
class Row:
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt_ids: tuple[int, ...]
    prompt_text: str
    reference: str
    where: str


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads, by far when the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="<end>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def row(tokenizer):
    def build(prompt: str, reference: str, where: str = "rows.jsonl:1") -> Row:
        question = tokenizer.encode(f"<s>{prompt}", add_special_tokens=False)
        answer = tokenizer.encode(f"{reference}<end>", add_special_tokens=False)
        trained = (False,) * len(question) + (True,) * len(answer)
        return Row(tuple(question + answer), trained, tuple(question), prompt, reference, where)

    return build


@pytest.fixture(scope="session")
def rows(row):
    """24 sums of different lengths."""
    pairs = [(a * 7 % 31, a * a % 53) for a in range(24)]
    return [row(f"{a}+{b}=", str(a + b), f"rows.jsonl:{n}") for n, (a, b) in enumerate(pairs, start=1)]


@pytest.fixture(scope="session")
def llama(tokenizer):
    def build(seed: int = 0, **changes):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        shape = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        return LlamaForCausalLM(LlamaConfig(**(shape | changes)))

    return build


@pytest.fixture
def spec():
    def build(**changes):
        wishes = {"generate": True, "max_new_tokens": 4, "metrics": ["exact_match"], "limit": None, "batch_size": 8}
        return SimpleNamespace(**(wishes | changes))

    return build


@pytest.fixture(scope="session")
def loop_likelihoods():
    """Each row by itself, through the model's plain logits: what perplexity must agree with."""

    def compute(model, items, virtual: int = 0):
        import torch

        found = []
        with torch.no_grad():
            for item in items:
                logits = model(input_ids=torch.tensor([item.input_ids])).logits[0, virtual:].double()
                total = 0.0
                for position in range(1, len(item.input_ids)):
                    if item.trained[position]:
                        total -= float(torch.log_softmax(logits[position - 1], -1)[item.input_ids[position]])
                found.append(total)
        return found

    return compute


@pytest.fixture(scope="session")
def evaluate_cache(tmp_path_factory):
    """The evaluate library makes an empty folder for each module, and copies the programs that it loads.

    Once for all tests of a process: it imports its copies as a package, which then has one place.
    """
    import evaluate

    patch = pytest.MonkeyPatch()
    for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE"):
        patch.setattr(evaluate.config, name, str(tmp_path_factory.mktemp(name)))
    yield
    patch.undo()
