"""The real preference files: what is kept, what is dropped and why, and every sequence as transformers itself has it.

The expected counts were taken from the files with the standard library, never from the code under test.
"""

import gzip
import json

import pytest
from groups_for_tests import fitter
from sources_for_tests import str_of

from tunekit.core.types import IGNORED
from tunekit.data.examples import ExampleReader
from tunekit.model.tokenizer import load_tokenizer
from tunekit.recipe.schema import ModelBlock, SourceBlock

HH = "preference/hh_rlhf_harmless_base_test.first1500.jsonl.gz"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def learnt(shared_data, path, material, limit=None):
    """(line -> what is learnt, line -> reason)."""
    rows = list(ExampleReader(shared_data, material).learnt([SourceBlock(path=path, limit=limit)]))
    return (
        {origin.line: row for origin, row in rows if not isinstance(row, str)},
        {origin.line: row for origin, row in rows if isinstance(row, str)},
    )


@pytest.fixture(scope="module")
def tokenizers(shared_data):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shared_data / "tokenizer/gpt2"
    inner = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    gpt2 = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    gpt2.chat_template = CHATML
    return {"builtin": load_tokenizer(ModelBlock(name="builtin:tiny")), "gpt2": gpt2}


@pytest.mark.parametrize("material", ["pairs", "judged", "prompts"])
def test_hh_rows_that_cannot_be_used(material, shared_data):
    good, bad = learnt(shared_data, HH, material)
    assert len(good) == 1492
    assert bad == dict.fromkeys((87, 517, 926, 1104), "the chosen answer is empty") | {
        668: "chosen: turn 5: two assistant turns in a row",
        764: "chosen: turn 3: two assistant turns in a row",
        1255: "chosen: turn 5: two assistant turns in a row",
        1320: "chosen: turn 9: two assistant turns in a row",
    }


def test_hh_role_words_inside_of_turns_do_not_split_them(shared_data):
    good, _ = learnt(shared_data, HH, "pairs", limit=200)
    begun = ((30, -3, "So she doesn’t like"), (106, -1, " insulting a foreign"), (198, -1, " Well, the"))
    for line, turn, words in begun:
        said = good[line][0].chosen.messages[turn]
        assert said.role == "assistant" and said.content.startswith(f"Human: {words}")
    raw = [json.loads(row) for row in gzip.decompress((shared_data / HH).read_bytes()).decode().strip().split("\n")]
    inside = [n for n in good if any("\n\nAssistant: Human:" in raw[n - 1][side] for side in ("chosen", "rejected"))]
    assert {30, 106, 147, 198} <= set(inside)
    for line, (pair,) in good.items():
        for side, example in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            names = {"user": "Human", "assistant": "Assistant"}
            text = "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in example.messages)
            assert text.split() == raw[line - 1][side].split()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sharegpt_pairs(language, shared_data):
    path = f"preference/lf_dpo_{language}_demo.first240.json"
    good, bad = learnt(shared_data, path, "pairs")
    assert len(good) == 240 and not bad
    raw = json.loads((shared_data / path).read_text("utf-8"))
    for line, (pair,) in good.items():
        row = raw[line - 1]
        assert pair.chosen.messages[-1].content == row["chosen"]["value"]
        assert pair.rejected.messages[-1].content == row["rejected"]["value"]
        assert [turn.content for turn in pair.chosen.messages[:-1]] == [turn["value"] for turn in row["conversations"]]
        assert pair.margin is None
    assert len({repr(row) for row in good.values()}) == len({str_of(row) for row in raw}) < 240
    judged, _ = learnt(shared_data, path, "judged")
    assert judged == good


def test_judged_answers(shared_data):
    path = "preference/lf_kto_en_demo.first240.json"
    good, bad = learnt(shared_data, path, "judged")
    assert len(good) == 240 and not bad
    raw = json.loads((shared_data / path).read_text("utf-8"))
    assert [row.good for row in good.values()] == [row["label"] for row in raw]
    answers = [row["messages"][-1]["content"] for row in raw]
    assert [row.example.messages[-1].content for row in good.values()] == answers
    prompts, _ = learnt(shared_data, path, "prompts")
    assert [row.reference for row in prompts.values()] == [
        answer if row["label"] else "" for answer, row in zip(answers, raw, strict=True)
    ]


def test_scored_turns(shared_data):
    path = "preference/taskmaster3_reward_01.json"
    good, bad = learnt(shared_data, path, "judged")
    raw = json.loads((shared_data / path).read_text("utf-8"))

    def empty(row):
        turns = [*json.loads(row["context"]), json.loads(row["generation"])]
        return any(turn["role"] == "agent" and not turn.get("text") and "api" not in turn for turn in turns)

    assert set(bad) == {line for line, row in enumerate(raw, start=1) if empty(row)} and len(bad) == 77
    assert all(reason.endswith("the assistant's answer is empty") for reason in bad.values())
    assert {line: row.good for line, row in good.items()} == {line: raw[line - 1]["reward"] == 1 for line in good}
    first = good[1].example.messages
    assert [turn.role for turn in first[:5]] == ["assistant", "user", "assistant", "tool", "assistant"]
    wanted = {"name": "resolve_movie", "arguments": {"name.movie": "Eternal"}}
    assert first[2].tool_calls == ({"type": "function", "function": wanted},)
    made = fitter("judged", 1 << 20, tokenizer=load_tokenizer(ModelBlock(name="builtin:tiny")))
    found = made.encode(list(good.values())[:60])
    assert all(not isinstance(row, str) and len(row.examples) == 1 for row in found)


@pytest.mark.parametrize("name", ["builtin", "gpt2"])
@pytest.mark.parametrize(
    ("path", "limit"),
    [(HH, 150), ("preference/lf_dpo_en_demo.first240.json", 40), ("preference/lf_dpo_zh_demo.first240.json", 40)],
)
def test_the_beginning_and_a_branch_are_the_whole_conversation(path, limit, name, tokenizers, shared_data):
    tokenizer = tokenizers[name]
    rows = learnt(shared_data, path, "pairs", limit)[0]
    found = fitter("pairs", 1 << 20, tokenizer=tokenizer).encode(list(rows.values()))
    assert len(found) > 30
    for (pair,), encoding in zip(rows.values(), found, strict=True):
        (row,) = encoding.examples
        shared, at = row["prompt_tokens"], row["prompt_tokens"]
        assert shared == len(row["input_ids"]) - sum(row["branches"]) >= 1
        assert row["labels"][:shared] == [IGNORED] * shared
        for example, size in zip((pair.chosen, pair.rejected), row["branches"], strict=True):
            turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
            branch, labels = row["input_ids"][at : at + size], row["labels"][at : at + size]
            whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
            assert row["input_ids"][:shared] + branch == whole
            trained = [label for label in labels if label != IGNORED]
            assert trained == [token for token, label in zip(branch, labels, strict=True) if label != IGNORED]
            assert tokenizer.decode(trained).strip() == (turns[-1]["content"] + "<|im_end|>").strip()
            at += size
        assert at == len(row["input_ids"]) and len(row["turn_ends"]) == 2
        assert {row["input_ids"][end] for end in row["turn_ends"]} == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
