"""Whether a teacher's distributions can be compared with a student's token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import UserError

TINY = Path(__file__).parents[2] / "src/tunekit/model/builtin/tiny"


@pytest.fixture
def made(tmp_path):
    """The embedded tokenizer, with its tokenizer.json changed by ``edit`` and attributes set."""
    from transformers import AutoTokenizer

    def make(edit=None, **attributes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).write_text((TINY / name).read_text())
        if edit is not None:
            content = json.loads((folder / "tokenizer.json").read_text())
            edit(content)
            (folder / "tokenizer.json").write_text(json.dumps(content))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name, value in attributes.items():
            setattr(tokenizer, name, value)
        return tokenizer

    return make


def refusal(student, teacher):
    from tunekit.rl.vocabulary import check_same_vocabulary

    with pytest.raises(UserError) as caught:
        check_same_vocabulary(student, teacher)
    return str(caught.value), caught.value.fix


def test_the_same_tokenizer_passes(made):
    from tunekit.rl.vocabulary import check_same_vocabulary

    check_same_vocabulary(made(), made())


def test_padding_and_the_length_of_a_text_may_differ(made):
    from tunekit.rl.vocabulary import check_same_vocabulary

    check_same_vocabulary(made(pad_token="<|endoftext|>"), made(model_max_length=77, padding_side="left"))


def test_two_tokens_that_changed_places(made):
    def swap(content):
        vocabulary = content["model"]["vocab"]
        tokens = {id_: token for token, id_ in vocabulary.items()}
        vocabulary[tokens[1000]], vocabulary[tokens[1500]] = 1500, 1000

    ours = made()
    told, fix = refusal(ours, made(swap))
    assert "(2,048 and 2,048 tokens)" in told
    first, second = ours.convert_ids_to_tokens([1000, 1500])
    assert f"token 1,000 is {first!r} for the student, {second!r} for the teacher" in told
    assert "same family" in fix
    assert "model.tokenizer" not in fix


@pytest.mark.parametrize("more", ["student", "teacher"])
def test_one_side_has_more_tokens(made, more):
    sides = {"student": made(), "teacher": made()}
    sides[more].add_tokens(["<|think|>", "<|answer|>"])
    told, fix = refusal(**sides)
    assert f"({len(sides['student']):,} and {len(sides['teacher']):,} tokens)" in told
    shown = {"student": "'<|think|>' for the student, none", "teacher": "none for the student, '<|think|>'"}
    assert f"token 2,048 is {shown[more]} for the teacher" in told
    assert f"the {more} only has more tokens" in fix
    assert ("model.new_tokens" if more == "student" else "model.tokenizer") in fix


def test_each_side_has_tokens_of_its_own(made):
    sides = {"student": made(), "teacher": made()}
    sides["student"].add_tokens(["<|think|>"])
    sides["teacher"].add_tokens(["<|answer|>", "<|end|>"])
    told, fix = refusal(**sides)
    assert "token 2,048 is '<|think|>' for the student, '<|answer|>' for the teacher" in told
    assert "more tokens" not in fix


@pytest.mark.parametrize(
    ("attribute", "ours", "theirs", "told"),
    [
        ("eos_token", "<|im_end|>", "<|endoftext|>", "eos_token of the student is '<|im_end|>', of the teacher '<|end"),
        ("bos_token", None, "<|endoftext|>", "bos_token of the student is none, of the teacher '<|endoftext|>'"),
    ],
)
def test_special_tokens(made, attribute, ours, theirs, told):
    found, fix = refusal(made(**{attribute: ours}), made(**{attribute: theirs}))
    assert told in found
    assert "model.tokenizer" in fix


def test_text_that_is_cut_differently(made):
    def digits_together(content):
        steps = content["pre_tokenizer"]["pretokenizers"]
        steps[:] = [step for step in steps if step["type"] != "Digits"]
        content["model"]["merges"].insert(0, ["1", "2"])
        token = next(token for token, id_ in content["model"]["vocab"].items() if id_ == 2047)
        del content["model"]["vocab"][token]
        content["model"]["vocab"]["12"] = 2047
        content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != token]

    def same_tokens(content):
        digits_together(content)
        content["pre_tokenizer"] = json.loads((TINY / "tokenizer.json").read_text())["pre_tokenizer"]

    told, fix = refusal(made(same_tokens), made(digits_together))
    assert 'cut text differently, first after "It\'s ' in told
    assert "model.tokenizer" in fix


def template(end):
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def test_turns_that_end_differently(made):
    theirs = made(chat_template=template("<|endoftext|>"))
    told, fix = refusal(made(), theirs)
    assert told == "a turn ends with '<|im_end|>' in the student's chat template, with '<|endoftext|>' in the teacher's"
    assert "model.chat_template" in fix


@pytest.mark.parametrize("given", [None, template("<|im_end|>"), template("<|im_end|>\n")])
def test_templates_that_end_a_turn_alike_or_are_not_there(made, given):
    from tunekit.rl.vocabulary import check_same_vocabulary

    check_same_vocabulary(made(), made(chat_template=given))
    check_same_vocabulary(made(chat_template=given), made())
