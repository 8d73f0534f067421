import json
import math

import pytest
from scripted_engine_for_tests import Scripted, rows

from tunekit.core.errors import DataError
from tunekit.core.progress import Silent
from tunekit.core.registry import TASKS

task = TASKS.load("preference")
PAIR = {"prompt": "Hi ", "chosen": "good", "rejected": "no"}


def run(engine, items, **options):
    found = task.run(engine, items, task.Config(**options), screen=Silent())
    return {result.metric: result for result in found}


def refused(items, **options):
    with pytest.raises(DataError) as error:
        task.check(items, task.Config(**options))
    return error.value


def test_by_hand():
    items = rows(PAIR, PAIR | {"chosen": "well"}, PAIR | {"chosen": "bad"})
    # the space at the end of the prompt is scored with the answer
    engine = Scripted({" good": -4.0, " well": -3.0, " bad": -5.5, " no": -3.0})
    found = run(engine, items)
    assert found["preference_accuracy"].values == (0.0, 0.5, 0.0)
    assert found["margin"].values == (-1.0, 0.0, -2.5)
    assert engine.asked[:2] == [("Hi", " good"), ("Hi", " no")]
    item = found["margin"].items[0]
    assert (item.where, item.prompt_text, item.reference) == ("rows.jsonl:1", "Hi ", "good")


def test_normalised_by_tokens():
    items = rows({"prompt": "Hi", "chosen": "good", "rejected": "no"})
    found = run(Scripted({"good": -4.0, "no": -3.0}), items, normalise=True)
    assert found["margin"].values == (0.5,)  # -4/4 and -3/2
    assert found["preference_accuracy"].values == (1.0,)
    assert found["margin"].note == "nats a token"


def test_nan_stays():
    found = run(Scripted({" good": math.nan, " no": -3.0}), rows(PAIR))
    assert math.isnan(found["margin"].values[0]) and math.isnan(found["preference_accuracy"].values[0])


def test_templates_and_separator():
    engine = Scripted({"\nA": -1.0, "\nB": -2.0})
    items = rows({"q": "x", "a": ["A", "B"]})
    run(engine, items, prompt="Q: {q}", chosen="{a.0}", rejected="a.1", separator="\n")
    assert engine.asked == [("Q: x", "\nA"), ("Q: x", "\nB")]


def test_without_a_prompt_the_whole_texts_are_scored():
    engine = Scripted({"Human: a": -1.0, "Human: b": -2.0})
    found = run(engine, rows({"chosen": "Human: a", "rejected": "Human: b"}), prompt=None)
    assert found["margin"].values == (1.0,) and engine.asked == [("", "Human: a"), ("", "Human: b")]


def turns(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"prompt": turns("a", "b", "c"), "chosen": turns("", "yes")[1:],
          "rejected": {"role": "assistant", "content": "no"}}, {}),
        ({"prompt": turns("a", "b", "c"), "chosen": "yes", "rejected": "no"}, {}),
        ({"chosen": turns("a", "b", "c", "yes"), "rejected": turns("a", "b", "c", "no")}, {"prompt": None}),
        ({"prompt": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}],
          "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}, {}),
    ],
)  # fmt: skip
def test_conversations(row, options):
    before = "<user>a<assistant>b<user>c<assistant>"
    engine = Scripted({"yes": -1.0, "no": -2.0})
    found = run(engine, rows(row), chat=True, **options)
    assert engine.asked == [(before, "yes"), (before, "no")]
    assert found["margin"].values == (1.0,)
    assert found["margin"].items[0].prompt_text == "user: a\nassistant: b\nuser: c"


def test_a_text_prompt_in_a_chat():
    engine = Scripted({"good": -1.0, "no": -2.0})
    run(engine, rows(PAIR), chat=True, separator="ignored")
    assert engine.asked[0] == ("<user>Hi <assistant>", "good")
    engine = Scripted({"yes": -1.0, "no": -2.0})
    answers = {"chosen": turns("", "yes")[1:], "rejected": turns("", "no")[1:]}
    run(engine, rows({"prompt": "Hi"} | answers), chat=True)
    assert engine.asked[0] == ("<user>Hi<assistant>", "yes")


@pytest.mark.parametrize(
    ("items", "options", "match"),
    [
        ([], {}, "evaluation set is empty"),
        ([{"prompt": "a", "chosen": "b", "rejctd": "c"}], {}, "no column 'rejected'"),
        ([PAIR | {"chosen": " "}], {}, "'chosen' is empty"),
        ([PAIR | {"chosen": None}], {}, "empty (null)"),
        ([PAIR | {"prompt": turns("a")}], {}, "through the model's chat template"),
        ([PAIR | {"prompt": turns("a"), "chosen": turns("a")}], {"chat": True}, "does not end with an answer"),
        ([PAIR | {"prompt": turns("a"), "chosen": [{"role": "assistant"}]}], {"chat": True}, "no role and content"),
        ([PAIR], {"chat": True, "prompt": None}, "a chat needs a prompt"),
    ],
)
def test_faults(items, options, match):
    assert match in str(refused(rows(*items), **options))


def test_all_bad_rows_are_told_at_once():
    error = refused(rows(PAIR, PAIR | {"chosen": ""}, PAIR | {"rejected": [1]}))
    assert [problem.where for problem in error.problems] == ["rows.jsonl:2", "rows.jsonl:3"]


def test_a_model_without_chat_template_is_refused():
    with pytest.raises(DataError, match="no chat template"):
        run(Scripted({}, chat=False), rows(PAIR), chat=True)


def test_every_field_is_described():
    assert all(field.description for field in task.Config.model_fields.values())


class Short(Scripted):
    def likelihoods(self, requests, screen, what, done=lambda index, answer: None):
        self.worth = {}
        for request in requests:
            text = "".join(chr(one) for one, flag in zip(request.ids, request.scored) if flag and one > 2)
            self.worth[text] = -float(len(text))
        return super().likelihoods(requests, screen, what, done)


def test_pairs_of_a_real_file(shared_data):
    values = json.loads((shared_data / "preference" / "lf_dpo_en_demo.first240.json").read_text("utf-8"))
    found = run(Short(), rows(*values), prompt="conversations", chat=True)
    margins = [len(value["rejected"]["value"]) - len(value["chosen"]["value"]) for value in values]
    assert list(found["margin"].values) == margins
    assert list(found["preference_accuracy"].values) == [(margin > 0) + 0.5 * (margin == 0) for margin in margins]
