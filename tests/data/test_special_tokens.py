"""Control-token strings in the data stay text (S18), BOS is written once (S3), what is shown is what is trained."""

import re
from dataclasses import replace

import pytest
from goldens_for_tests import CASES
from render_for_tests import CONTROL, byte_level, call, metaspace, said, template, tool

from tunekit.core.errors import UserError
from tunekit.core.types import Example
from tunekit.data.encode import RowEncoder
from tunekit.data.preview import coloured, marked
from tunekit.data.render import Rendered, Renderer

TOKENIZERS = {"bytes": byte_level, "metaspace first": metaspace, "metaspace always": lambda: metaspace("always")}


def mistral(shared_data, legacy):
    """The real Mistral tokenizer, built from its SentencePiece model."""
    pytest.importorskip("google.protobuf", reason="protobuf is needed to read a SentencePiece model")
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString((shared_data / "tokenizer/mistral/mistral_instruct_tokenizer_240323.model.v3").read_bytes())
    control = [piece.piece for piece in model.pieces if piece.type in (2, 3)]
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    merges = generate_merges(vocabulary, {piece.piece: piece.score for piece in model.pieces}, control)
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy)
    tokenizer.add_tokens(control, special_tokens=True)
    return tokenizer


def gpt2(shared_data):
    """The real GPT-2 tokenizer with the control tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shared_data / "tokenizer/gpt2"
    core = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    tokenizer.add_tokens(list(CONTROL), special_tokens=True)
    return tokenizer


def check(tokenizer, source, word):
    """A conversation full of ``word`` has the control ids that the same one with a harmless word has, and no others."""
    turns = (
        ("system", "{} first"), ("user", "a{}b {}"), ("assistant", "", {"tool_calls": (call("f", x="x{}"),)}),
        ("tool", "{}{} 3"), ("assistant", "{} yes {}"), ("user", "{}"), ("assistant", "no{}"),
    )  # fmt: skip

    def encoded(filling):
        def fill(value):
            return value.replace("{}", filling) if isinstance(value, str) else value

        filled = [
            (role, fill(content), *({"tool_calls": (call("f", x=fill("x{}")),)} for _ in fields))
            for role, content, *fields in turns
        ]
        rendered = Renderer(tokenizer, source).render(Example(said(*filled), (tool("f"),)))
        return rendered, RowEncoder(tokenizer).encode([rendered])[0]

    rendered, row = encoded(word)
    harmless, other = encoded("word")
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert rendered.text.count(word) - harmless.text.count(word) == 10  # all of them are there
    assert [i for i in row.input_ids if i in special] == [i for i in other.input_ids if i in special]
    assert len(rendered.literals) == 10 and all(rendered.text[b:e] == word for b, e in rendered.literals)
    assert [rendered.text[b:e] for b, e in rendered.trained] == [
        harmless.text[b:e].replace("word", word) for b, e in harmless.trained
    ]
    assert len(row.turn_ends) == len(other.turn_ends) == 3
    assert all(row.trained[at] and row.input_ids[at] in special for at in row.turn_ends)
    text = tokenizer.decode(row.input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert re.sub(r"\s", "", text) == re.sub(r"\s", "", rendered.text)
    return row, other


@pytest.mark.parametrize("word", ["</s>", "<|im_end|>", "<s>", "<|im_start|>", "<end_of_turn>"])
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", ["chatml", "marked", "llama3", "mistral"])
def test_strings_of_the_data_stay_text(name, kind, word):
    check(TOKENIZERS[kind](), template(name), word)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("word", ["</s>", "[INST]", "<unk>", "[/TOOL_RESULTS]"])
def test_real_mistral_tokenizer(shared_data, legacy, word):
    check(mistral(shared_data, legacy), template("mistral"), word)


@pytest.mark.parametrize("word", ["<|endoftext|>", "<|im_end|>"])
def test_real_gpt2_tokenizer(shared_data, word):
    check(gpt2(shared_data), template("chatml"), word)


@pytest.mark.parametrize("legacy", [False, True])
def test_pieces_are_read_as_in_the_whole(shared_data, legacy):
    """Around a string of the data, every other token is the one it is in the same row without special tokens."""
    tokenizer = mistral(shared_data, legacy)
    example = Example(said(("user", "Hi there"), ("assistant", "a  word </s> and 你好")))
    rendered = Renderer(tokenizer, template("mistral")).render(example)
    encoded = RowEncoder(tokenizer).encode([rendered])[0]
    clean = replace(example, messages=(example.messages[0], replace(example.messages[1], content="a  word , and 你好")))
    other = RowEncoder(tokenizer).encode([Renderer(tokenizer, template("mistral")).render(clean)])[0]
    tokens, others = (tokenizer.convert_ids_to_tokens(list(row.input_ids)) for row in (encoded, other))
    at = others.index("▁,") if "▁," in others else others.index(",")
    assert tokens[:at] == others[:at]
    tail = len(others) - at - 1
    assert tokens[-tail:] == others[-tail:]


def test_an_added_token_without_the_flag_is_vocabulary():
    tokenizer = byte_level("<unused>", eos="<|im_end|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    example = Example(said(("user", "x"), ("assistant", "<think>hm</think>y")))
    encoded = RowEncoder(tokenizer).encode([Renderer(tokenizer, template("chatml")).render(example)])[0]
    assert tokenizer.convert_tokens_to_ids("<think>") in encoded.input_ids


def test_clean_rows_pay_nothing():
    tokenizer = byte_level()
    encoder, renderer = RowEncoder(tokenizer), Renderer(tokenizer, template("chatml"))
    calls = []
    encoder._pieces = lambda row: calls.append(row)
    encoder.encode([renderer.render(CASES["multi"]), renderer.render(CASES["unicode"])])
    assert not calls


@pytest.mark.parametrize("name", ["chatml", "marked", "llama3", "mistral", "gemma"])
@pytest.mark.parametrize("case", ["single", "multi", "unicode", "code", "headers"])
def test_ids_are_those_of_transformers(name, case):
    tokenizer = metaspace()
    example = CASES[case]
    ours = RowEncoder(tokenizer).encode([Renderer(tokenizer, template(name)).render(example)])[0]
    messages = [{"role": m.role, "content": m.content} for m in example.messages]
    theirs = tokenizer.apply_chat_template(messages, chat_template=template(name), return_dict=True)["input_ids"]
    assert list(ours.input_ids) == theirs
    assert theirs.count(tokenizer.bos_token_id) == (name not in ("chatml", "marked"))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_documents(kind):
    tokenizer = TOKENIZERS[kind]()
    renderer, encoder = Renderer(tokenizer), RowEncoder(tokenizer)
    plain, with_bos, with_both = encoder.encode(
        [renderer.render(Example(text=t)) for t in ("a b", "<s>a b", "a</s>b <s>")]
    )
    beginning = [] if kind == "bytes" else [tokenizer.bos_token_id]
    assert list(plain.input_ids) == [
        *beginning,
        *tokenizer("a b", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert all(plain.trained) and plain.turn_ends == (len(plain.input_ids) - 1,) and plain.prompt_tokens == 0
    for row, text in ((with_bos, "<s>a b"), (with_both, "a</s>b <s>")):
        assert list(row.input_ids).count(tokenizer.bos_token_id) == len(beginning)
        assert list(row.input_ids).count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(row.input_ids[len(beginning) : -1]).strip() == text


def test_tokenizers_that_cannot_tell_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not tell which characters"):
        RowEncoder(Slow())
    tokenizer = byte_level("<x>", eos="</s>")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        RowEncoder(tokenizer).encode([Rendered("a", trained=((0, 1),), document=True)])


def test_white_space_that_a_control_token_swallows():
    """Phi-3 style: the header takes the spaces behind it, also those of the answer; it is not trained for that."""
    from tokenizers import AddedToken

    tokenizer = byte_level("<y>")
    tokenizer.add_tokens([AddedToken("<|bot|>", special=True, rstrip=True, normalized=False)], special_tokens=True)
    source = (
        "{% for m in messages %}{{ '<|bot|>\n' if m.role == 'assistant' else '' }}{{ m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|bot|>\n' }}{% endif %}"
    )
    for answer in (" yes", " </s>yes"):
        encoded = RowEncoder(tokenizer).encode(
            [Renderer(tokenizer, source).render(Example(said(("user", "q"), ("assistant", answer))))]
        )[0]
        header = encoded.input_ids.index(tokenizer.convert_tokens_to_ids("<|bot|>"))
        assert not encoded.trained[header] and encoded.trained[header + 1]
        assert encoded.prompt_tokens == header + 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_preview(kind):
    tokenizer = TOKENIZERS[kind]()
    rendered = Renderer(tokenizer, template("chatml")).render(
        Example(said(("user", "你 \x1b[1m"), ("assistant", "世界 </s> yes")))
    )
    encoded = RowEncoder(tokenizer).encode([rendered])[0]
    expected = "<|im_start|>user\n你 ␛[1m<|im_end|>\n<|im_start|>assistant\n«世界 </s> yes<|im_end|>»\n"
    shown = marked(encoded, tokenizer)
    assert re.sub(" ", "", shown) == re.sub(" ", "", expected)
    assert kind == "metaspace always" or shown == expected
    text = coloured(encoded, tokenizer)
    assert "<|im_end|> ← end" in text.plain
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles["世界 </s> yes".strip()] == "green" and "reverse" in styles["<|im_start|>"]
