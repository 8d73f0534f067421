"""Agreement with TRL's own training templates: their assistant masks, token by token, and the unmarked originals."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from render_for_tests import byte_level, call, said, tool

from tunekit.core.types import Example, RowError
from tunekit.data.encode import RowEncoder
from tunekit.data.render import Renderer, message_dict

FOLDER = Path(find_spec("trl").origin).parent / "chat_templates"
CONTROL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>",
    "<|observation|>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>", "<|turn>", "<turn|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|channel>", "<channel|>",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>",
    "<|eot|>", "<|eom|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
SUM = (
    ("user", "1+2?"),
    ("assistant", "", {"tool_calls": (call("add", a=1),)}),
    ("tool", "73", {"name": "add", "tool_call_id": "call00001"}),
)
EXAMPLES = {
    "single": Example(said(("user", "Hi"), ("assistant", "Hello there."))),
    "turns": Example(
        said(("user", "Hi"), ("assistant", "Hello."), ("user", "你好?"), ("assistant", "世界 🌍 {{ x }}"))
    ),
    "system": Example(
        said(("system", "Be kind"), ("user", "Hi"), ("assistant", " Hello\n"), ("user", "Hi"), ("assistant", "Hi"))
    ),
    "reasoning": Example(
        said(
            ("user", "a"),
            ("assistant", "b", {"reasoning": "hm"}),
            ("user", "c"),
            ("assistant", "d", {"reasoning": "ah"}),
        )
    ),
    "tools": Example(said(*SUM, ("assistant", "It is 3."), ("user", "Ta"), ("assistant", "Bye")), (tool("add"),)),
}
TRAINING = sorted(path.stem for path in FOLDER.glob("*_training.jinja"))
EASY = ("qwen3", "qwen2_5", "llama3", "gemma", "gemma3", "phi3")


def tokenizer():
    return byte_level(*CONTROL, eos="<|im_end|>")


def source(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def masks(name, example):
    """Ids and mask as transformers gives them for the template's own marks."""
    messages = [message_dict(message) for message in example.messages]
    out = tokenizer().apply_chat_template(
        messages,
        tools=list(example.tools) or None,
        chat_template=source(name),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return list(out["input_ids"]), [bool(one) for one in out["assistant_masks"]]


@pytest.mark.parametrize("case", EXAMPLES)
@pytest.mark.parametrize("name", TRAINING)
def test_masks_agree(name, case):
    try:
        rendered = Renderer(tokenizer(), source(name)).render(EXAMPLES[case])
    except RowError as error:
        if name.removesuffix("_training") in EASY and case in ("single", "turns"):
            raise
        pytest.skip(str(error))
    encoded = RowEncoder(tokenizer()).encode([rendered])[0]
    ids, mask = masks(name, EXAMPLES[case])
    assert list(encoded.input_ids) == ids
    assert list(encoded.trained) == mask
    assert len(encoded.turn_ends) == len(rendered.turns)
    assert all(encoded.trained[at] for at in encoded.turn_ends)


def test_an_end_of_sequence_behind_the_last_turn():
    """Phi-3 trains one more token behind the last turn; the turn's end is still its own token."""
    rendered = Renderer(tokenizer(), source("phi3_training")).render(EXAMPLES["turns"])
    assert rendered.text.endswith("<|end|>\n<|im_end|>") and rendered.turns[-1].end == len(rendered.text)
    assert [rendered.text[slice(*turn.stop)] for turn in rendered.turns] == ["<|end|>", "<|end|>"]


@pytest.mark.parametrize("case", EXAMPLES)
@pytest.mark.parametrize("name", ["llama3", "gemma", "gemma3", "cohere", "lfm2_v2", "qwen3_instruct_2507", "gemma4_v2"])
def test_the_unmarked_original_gives_the_same(name, case):
    """Without marks the turns are found by looking; the marks only add the line break behind the end token."""
    marked = name if f"{name}_training" in TRAINING else None
    try:
        rendered = Renderer(tokenizer(), source(name)).render(EXAMPLES[case])
    except RowError as error:
        pytest.skip(str(error))
    assert len(rendered.turns) == sum(message.role == "assistant" for message in EXAMPLES[case].messages)
    if marked:
        theirs = Renderer(tokenizer(), source(f"{marked}_training")).render(EXAMPLES[case])
        assert theirs.text == rendered.text
        assert [rendered.text[b:e] for b, e in rendered.trained] == [
            theirs.text[b:e].rstrip("\n") for b, e in theirs.trained
        ]


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
)
def test_what_others_say_is_never_trained(name):
    """Any installed template either refuses the conversation or trains no word of the user's or a tool's."""
    turns = (
        ("user", "qqq"), ("assistant", "aaa one"), ("user", "qqq two"),
        ("assistant", "", {"tool_calls": (call("add", a=1),)}),
        ("tool", "73qqq", {"name": "add", "tool_call_id": "call00001"}), ("assistant", "aaa three"),
        ("user", "qqq"), ("assistant", "aaa end"),
    )  # fmt: skip
    for example in (Example(said(*turns), (tool("add"),)), Example(said(*turns[:3], turns[-1]))):
        try:
            rendered = Renderer(tokenizer(), source(name)).render(example)
        except RowError:
            continue
        trained = [rendered.text[b:e] for b, e in rendered.trained]
        assert not any("qqq" in text for text in trained)
        said_ = [m.content or "add" for m in example.messages if m.role == "assistant"]
        assert all(words in text for words, text in zip(said_, trained, strict=True))
