"""The files of the built-in tiny model: tokenizer, chat template, configuration, and the tokenizer's maker."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunekit.model.builtin import make_tokenizer

FOLDER = make_tokenizer.FOLDER
CALL = {"type": "function", "function": {"name": "where", "arguments": {"thing": "杯子", "count": 2}}}
TOOL = {"type": "function", "function": {"name": "where", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize(
    "text",
    [
        "Anna has a red cup. 27 + 15 = 42.",
        "安娜有一个红色的杯子。3公里是3000米。",
        "Grüße, naïve café — “quoted”, señor 🙂👩‍👩‍👧 𝔘",
        "  two  spaces\t\ttabs\r\n\r\n newlines \n",
        "日本語テキスト 한국어 العربية",
        "def f(x):\n    return x[0] != '<|'",
    ],
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.bos_token is None
    assert [tokenizer.convert_tokens_to_ids(token) for token in make_tokenizer.SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert tokenizer.decode(tokenizer("a<|im_end|>b<|pad|>").input_ids, skip_special_tokens=True) == "ab"
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids


def test_digits_and_han_characters_are_tokens_of_their_own(tokenizer):
    assert tokenizer.tokenize("4815")[-4:] == ["4", "8", "1", "5"]
    assert len(tokenizer.tokenize("安娜有杯子")) == 5


def test_configuration_agrees_with_the_tokenizer(tokenizer):
    config, generation = AutoConfig.from_pretrained(FOLDER), GenerationConfig.from_pretrained(FOLDER)
    assert config.vocab_size == len(tokenizer) == make_tokenizer.VOCABULARY
    assert config.eos_token_id == generation.eos_token_id == tokenizer.eos_token_id
    assert config.pad_token_id == generation.pad_token_id == tokenizer.pad_token_id
    assert config.max_position_embeddings == tokenizer.model_max_length >= 1024
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 2_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_500_000
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def trained_text(tokenizer, messages, **options):
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    return tokenizer.decode([i for i, kept in zip(encoded["input_ids"], encoded["assistant_masks"]) if kept])


def test_marks_hold_the_answers_and_their_end_of_turn(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "你好 🙂"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Now."},
    ]
    assert trained_text(tokenizer, messages) == "你好 🙂<|im_end|>Now.<|im_end|>"
    assert tokenizer.apply_chat_template(messages[:3], tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello.<|im_end|>\n"
        "<|im_start|>assistant\n你好 🙂<|im_end|>\n"
    )


def test_generation_prompt_is_the_head_of_the_assistants_turn(tokenizer):
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes"}]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == prompt + "Yes<|im_end|>\n"


@pytest.mark.parametrize("arguments", [CALL["function"]["arguments"], json.dumps(CALL["function"]["arguments"])])
def test_tool_calls_are_trained_and_tool_results_are_not(tokenizer, arguments):
    call = {"type": "function", "function": {"name": "where", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "in the park"},
        {"role": "assistant", "content": "In the park."},
    ]
    first, second, rest = (
        trained_text(tokenizer, messages, tools=[TOOL]).split("\n", 1)[0],
        *trained_text(tokenizer, messages, tools=[TOOL]).split("\n", 1)[1].split("<|im_end|>", 1),
    )
    for line in (first, second):
        body = json.loads(line.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        assert body["name"] == "where" and body["arguments"]["count"] == 2
    assert rest == "In the park.<|im_end|>"


def test_tools_are_listed_once_after_the_system_message(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    text = tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert text.count("Be brief.") == text.count("<|im_start|>system") == 1
    listed = text.split("one JSON object a line:\n")[1].splitlines()[0]
    assert json.loads(listed) == TOOL
    without_system = tokenizer.apply_chat_template(messages[1:], tools=[TOOL], tokenize=False)
    assert without_system.count("<|im_start|>system") == 1 and "<|im_start|>user\nWhere?" in without_system


def test_content_in_parts_and_unknown_roles(tokenizer):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert "user\nHello<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False
    )
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "x"}], tokenize=False)


def test_the_maker_gives_the_shipped_bytes(tmp_path):
    make_tokenizer.write(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_the_package_folder_stays_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 10_000_000
