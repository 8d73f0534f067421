import csv
import json
import math

import pytest
from pydantic import ValidationError
from scripted_engine_for_tests import Scripted, rows

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.core.registry import TASKS
from tunekit.evaluate.contract import Row

task = TASKS.load("multiple_choice")
TWO = {"prompt": "Q: {q}\nA:", "choices": ["{a}", "{b}"], "answer": "right"}
SUM = {"q": "1+1?", "a": "2", "b": "three", "right": 0}


def run(engine, items, **options):
    found = task.run(engine, items, task.Config(**options), screen=Silent())
    return {result.metric: result for result in found}


def refused(items, **options):
    with pytest.raises((DataError, UserError)) as error:
        task.check(items, task.Config(**options))
    return error.value


def test_by_hand():
    # a sum: -4 < -6; a letter: -4/1 < -6/5
    engine = Scripted({" 2": -4.0, " three": -6.0})
    found = run(engine, rows(SUM, SUM | {"right": 1}), **TWO)
    assert found.keys() == {"acc", "acc_norm"}
    assert found["acc"].values == (1.0, 0.0)
    assert found["acc_norm"].values == (0.0, 1.0)
    assert engine.asked[:2] == [("Q: 1+1?\nA:", " 2"), ("Q: 1+1?\nA:", " three")]
    item = found["acc"].items[1]
    assert (item.where, item.prompt_text, item.reference) == ("rows.jsonl:2", "Q: 1+1?\nA:", "three")
    assert found["acc"].higher_is_better and found["acc"].weights == (1.0, 1.0) and not found["acc"].texts


def test_length_is_in_characters_or_in_bytes_without_the_separator():
    # 4 characters and 4 bytes; 2 characters and 6 bytes
    items = rows({"q": "?", "a": "cats", "b": "猫々", "right": 0})
    engine = Scripted({"::cats": -8.0, "::猫々": -5.0})
    found = run(engine, items, **TWO, separator="::", metrics=["acc_norm", "acc_bytes", "acc"])
    assert list(found) == ["acc_norm", "acc_bytes", "acc"]
    assert found["acc_norm"].values == (1.0,)  # -2 and -2.5
    assert found["acc_bytes"].values == (0.0,)  # -2 and -0.83
    assert found["acc"].values == (0.0,)
    # with the separator it would be -8/6 and -5/4: the other one


def test_the_first_of_equals_is_taken_and_nan_stays():
    items = rows(SUM, SUM | {"right": 1})
    assert run(Scripted({" 2": -1.0, " three": -1.0}), items, **TWO)["acc"].values == (1.0, 0.0)
    found = run(Scripted({" 2": math.nan, " three": -1.0}), items, **TWO, metrics=["acc", "mc2"])
    assert all(map(math.isnan, found["acc"].values + found["mc2"].values))


def test_mc2_by_hand():
    items = rows({"q": "?", "mc": {"choices": ["a", "b", "c"], "labels": [1, 0, 1]}})
    engine = Scripted({" a": math.log(0.1), " b": math.log(0.2), " c": math.log(0.1)})
    found = run(engine, items, prompt="{q}", choices="mc.choices", labels="mc.labels")
    assert found["mc2"].values == pytest.approx((0.5,), abs=1e-15)
    assert found["acc"].values == (0.0,)
    assert found["acc"].items[0].reference == "a / c"
    far = Scripted({" a": -2000.0, " b": -2000.0, " c": -2000.0})
    found = run(far, items, prompt="{q}", choices="mc.choices", labels="mc.labels")
    assert found["mc2"].values == pytest.approx((2 / 3,))


@pytest.mark.parametrize(
    ("answers", "options", "right"),
    [
        ([0, 1], {}, [0, 1]),
        (["1", "2"], {"index_base": 1}, [0, 1]),
        (["B", "(A)"], {}, [1, 0]),
        (["b.", "a"], {}, [1, 0]),
        (["north", " south"], {}, [0, 1]),
        ([["A", "B"], ["A"]], {}, [0, 0]),
        ([True, False], {}, [1, 0]),
    ],
)
def test_ways_to_name_the_right_choice(answers, options, right):
    items = rows(*({"q": "?", "a": "north", "b": "south", "right": answer} for answer in answers))
    engine = Scripted({" north": -1.0, " south": -2.0})
    values = run(engine, items, **TWO, **options)["acc"].values
    assert values == tuple(float(place == 0) for place in right)


def test_the_one_way_that_fits_all_rows_is_taken():
    # as the first row's text '1' is the second choice, as an index too; the second row has an index only
    items = rows(
        {"q": "?", "choices": ["0", "1", "2"], "right": "1"}, {"q": "?", "choices": ["x", "y", "z"], "right": "2"}
    )
    engine = Scripted({" 0": -3.0, " 1": -1.0, " 2": -2.0, " x": -3.0, " y": -2.0, " z": -1.0})
    assert run(engine, items, prompt="{q}", choices="choices", answer="right")["acc"].values == (1.0, 1.0)


def test_answers_that_can_be_read_in_two_ways_are_refused():
    items = rows({"q": "?", "choices": ["2", "1", "0"], "right": "0"})
    wish = {"prompt": "{q}", "choices": "choices", "answer": "right"}
    error = refused(items, **wish)
    assert "can be read as index and as text" in str(error) and "answer_as: index, or answer_as: text" in error.fix
    engine = Scripted({" 2": -1.0, " 1": -2.0, " 0": -3.0})
    assert run(engine, items, **wish, answer_as="index")["acc"].values == (1.0,)
    assert run(engine, items, **wish, answer_as="text")["acc"].values == (0.0,)


def test_all_bad_rows_are_told_at_once():
    good = [SUM] * 8
    error = refused(rows(*good, SUM | {"right": 5}, SUM | {"right": "thre"}, SUM | {"a": ""}, SUM | {"a": None}), **TWO)
    told = [(problem.where, problem.what) for problem in error.problems]
    assert told == [
        ("rows.jsonl:12", "column 'a' is empty (null)"),
        ("rows.jsonl:9", "the answer '5' is none of the 2 choices"),
        ("rows.jsonl:10", "the answer 'thre' is none of the 2 choices"),
        ("rows.jsonl:11", "choice 1 is empty"),
    ]
    assert error.problems[2].fix == "did you mean 'three'?"


def test_the_same_fault_in_many_rows_is_told_once():
    error = refused(rows(*[SUM] * 1000), **(TWO | {"answer": "rihgt"}))
    assert len(error.problems) == 1
    assert error.problems[0].where == "rows.jsonl:1" and error.fix == "did you mean 'right'?"
    error = refused(rows(SUM, *[SUM | {"b": None}] * 9), **TWO)
    assert str(error).startswith("rows.jsonl:2: column 'b' is empty (null) (also rows.jsonl:3, ")
    assert str(error).endswith("rows.jsonl:7 and 3 more rows)")


def test_empty_choices():
    items = rows({"q": "?", "c": ["", "b", "c", ""], "l": [1, 0, 1, 0]}, {"q": "?", "c": ["a", "b"], "l": [1, 0]})
    wish = {"prompt": "{q}", "choices": "c", "labels": "l"}
    assert "rows.jsonl:1: choice 1 is empty" in str(refused(items, **wish))
    worth = {" ": -0.5, " a": -1.0, " b": -3.0, " c": -2.0}
    left_out, keep = Scripted(worth), Scripted(worth)
    found = run(left_out, items, **wish, empty_choices="leave_out", metrics=["acc", "mc2"])
    assert [text for _, text in left_out.asked] == [" b", " c", " a", " b"]
    assert found["acc"].values == (1.0, 1.0)
    assert found["mc2"].values[0] == pytest.approx(1 / (1 + math.exp(-1)))
    found = run(keep, items, **wish, empty_choices="keep")
    assert len(keep.asked) == 6
    assert found["acc"].values == (1.0, 1.0) and found["acc_norm"].values == (1.0, 1.0)
    all_right_empty = rows({"q": "?", "c": ["", "b", "c"], "l": [1, 0, 0]})
    assert "no right choice" in str(refused(all_right_empty, **wish, empty_choices="leave_out"))


@pytest.mark.parametrize(
    ("items", "options", "match"),
    [
        ([], TWO, "evaluation set is empty"),
        ([SUM], TWO | {"prompt": "{qestion}"}, "no column 'qestion'"),
        ([SUM | {"c": ["only"]}], TWO | {"choices": "c"}, "two choices or more, here are 1"),
        ([SUM], TWO | {"choices": ["{a}"]}, "two choices or more, here are 1"),
        ([SUM], TWO | {"choices": "a"}, "does not hold a list"),
        ([SUM | {"right": None}], TWO, "holds no answer"),
        ([SUM | {"right": []}], TWO, "holds no answer"),
        ([SUM], TWO | {"answer": 2}, "there is no choice 2"),
        ([SUM | {"l": [1]}], {"prompt": "{q}", "choices": ["{a}", "{b}"], "labels": "l"}, "0 or 1 for each of 2"),
        ([SUM | {"l": [0, 0]}], {"prompt": "{q}", "choices": ["{a}", "{b}"], "labels": "l"}, "no choice as right"),
        ([SUM], {"prompt": "{q}", "choices": ["{a}", "{b}"], "answers": "none.lst"}, "no file 'none.lst'"),
    ],
)
def test_faults(items, options, match):
    assert match in str(refused(rows(*items), **options))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "{q}", "choices": ["{a}", "{b}"]},
        TWO | {"labels": "l"},
        {"prompt": "{q}", "choices": ["{a}", "{b}"], "answers": "x", "few_shot": {"path": "y"}},
        TWO | {"metrics": ["f1"]},
        TWO | {"choices": "{a}"},
        TWO | {"shuffle": True},
    ],
)
def test_wishes_that_cannot_be_are_refused(options):
    with pytest.raises(ValidationError):
        task.Config(**options)


def test_every_field_is_described():
    assert all(field.description for field in task.Config.model_fields.values())


def test_examples_stand_before_each_prompt_and_a_row_among_them_is_refused(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"q": "0+1?", "a": "1", "b": "9", "right": 0}) + "\n")
    engine = Scripted({" 2": -1.0, " three": -2.0})
    run(engine, rows(SUM), **TWO, few_shot={"path": str(path)})
    assert engine.asked[0] == ("Q: 0+1?\nA: 1\n\nQ: 1+1?\nA:", " 2")
    path.write_text(json.dumps(SUM) + "\n")
    error = refused(rows({**SUM, "q": "another"}, SUM), **TWO, few_shot={"path": str(path)})
    assert "rows.jsonl:2: this row is one of the examples" in str(error)


def test_a_chat_has_no_separator_unless_asked_for():
    engine = Scripted({"2": -1.0, "three": -2.0, "_2": -1.0, "_three": -2.0})
    run(engine, rows(SUM), **TWO, chat=True)
    run(engine, rows(SUM), **TWO, chat=True, separator="_")
    assert engine.asked[0] == ("<user>Q: 1+1?\nA:<assistant>", "2")
    assert engine.asked[2] == ("<user>Q: 1+1?\nA:<assistant>", "_2")


def test_a_text_longer_than_the_model_reads_is_refused_by_row():
    engine = Scripted({" 2": -1.0, " three": -2.0}, positions=len("\1Q: 1+1?\nA: three"))
    run(engine, rows(SUM), **TWO)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 18 tokens are asked of a model that reads 17"):
        run(engine, rows(SUM, SUM | {"q": "10+1?"} | {"b": "thre"} | {"a": "2.5"} | {"b": "three"}), **TWO)


def test_an_engine_without_tokenizer_is_refused():
    engine = Scripted()
    engine.tokenizer = None
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        run(engine, rows(SUM), **TWO)


def test_answers_beside_the_rows(tmp_path):
    path = tmp_path / "right.lst"
    path.write_text("0\n1\n1\n")
    wish = {"prompt": "{q}", "choices": ["{a}", "{b}"], "answers": str(path)}
    items = rows(SUM, SUM, SUM)
    engine = Scripted({" 2": -1.0, " three": -2.0})
    assert run(engine, items, **wish)["acc"].values == (1.0, 0.0, 0.0)
    assert run(engine, [items[2], items[0]], **wish)["acc"].values == (0.0, 1.0)
    table = rows(SUM, SUM, name="rows.csv")
    assert "3 answers for 2 rows" in str(refused(table, **wish))
    assert "3 answers for 4 rows" in str(refused(rows(SUM, SUM, SUM, SUM), **wish))


class Equal(Scripted):
    """Every text is worth its number of characters: the first of the shortest is the likeliest."""

    def likelihoods(self, requests, screen, what, done=lambda index, answer: None):
        self.worth = {}
        for request in requests:
            text = "".join(chr(one) for one, flag in zip(request.ids, request.scored) if flag and one > 2)
            self.worth[text] = -float(len(text))
        return super().likelihoods(requests, screen, what, done)


def shortest(cases):
    """By hand: is the first of the shortest choices right?"""
    return [float(min(range(len(c)), key=lambda n: len(c[n])) in right) for c, right in cases]


def test_piqa(shared_data):
    folder = shared_data / "benchmarks"
    lines = (folder / "piqa_valid.first1200.jsonl").read_text("utf-8").splitlines()
    items = rows(*map(json.loads, lines))
    right = [int(line) for line in (folder / "piqa_valid_labels.first1200.lst").read_text().split()]
    wish = {"prompt": "Question: {goal}\nAnswer:", "choices": ["{sol1}", "{sol2}"]}
    wish["answers"] = str(folder / "piqa_valid_labels.first1200.lst")
    found = run(Equal(), items, **wish)["acc"].values
    cases = [((row.values["sol1"], row.values["sol2"]), (place,)) for row, place in zip(items, right)]
    assert list(found) == shortest(cases) and len(found) == 1200
    assert list(run(Equal(), items[100:110], **wish)["acc"].values) == shortest(cases[100:110])


def test_truthfulqa(shared_data):
    """20 rows have an empty choice in mc1, 29 in mc2."""
    items = rows(*json.loads((shared_data / "benchmarks" / "truthfulqa_mc_en.first600.json").read_text("utf-8")))
    wish = {"prompt": "Q: {question}\nA:", "choices": "mc1_targets.choices", "labels": "mc1_targets.labels"}
    assert sum("is empty" in problem.what for problem in refused(items, **wish).problems) == 7  # of 20 rows
    one = run(Equal(), items, **wish, empty_choices="leave_out")
    assert one.keys() == {"acc", "acc_norm"}
    filled = [[choice for choice in row.values["mc1_targets"]["choices"] if choice] for row in items]
    assert list(one["acc"].values) == shortest([(choices, (0,)) for choices in filled])
    wish |= {"choices": "mc2_targets.choices", "labels": "mc2_targets.labels"}
    by_hand = []
    for row in items:
        targets = row.values["mc2_targets"]
        parts = [math.exp(-len(choice) - 1) for choice in targets["choices"]]
        by_hand.append(sum(p for p, label in zip(parts, targets["labels"]) if label) / sum(parts))
    kept = run(Equal(), items, **wish, empty_choices="keep")["mc2"].values
    assert kept == pytest.approx(by_hand, rel=1e-12)
    left = run(Equal(), items, **wish, empty_choices="leave_out")["mc2"].values
    assert sum(a != b for a, b in zip(kept, left)) == 29


def test_mmlu(shared_data):
    for name in ("abstract_algebra", "college_mathematics", "formal_logic"):
        mmlu = shared_data / "benchmarks" / "mmlu"
        with (mmlu / "test" / f"{name}_test.csv").open(encoding="utf-8", newline="") as file:
            items = [Row(record, f"test.csv:{n}") for n, record in enumerate(csv.DictReader(file), start=2)]
        found = run(
            Equal(),
            items,
            prompt="{question}\nA. {choice0}\nB. {choice1}\nC. {choice2}\nD. {choice3}\nAnswer:",
            choices=["A", "B", "C", "D"],
            answer="answer",
            few_shot={"path": str(mmlu / "dev" / f"{name}_dev.csv"), "count": 5},
        )["acc"]
        assert list(found.values) == [float(row.values["answer"] == "0") for row in items]
        texts = {"prompt": "{question}", "choices": [f"{{choice{n}}}" for n in range(4)], "answer": "answer"}
        task.check(items, task.Config(**texts, answer_as="index"))


def test_bbh(shared_data):
    for name, choices in [
        ("boolean_expressions", ["False", "True"]),
        ("sports_understanding", ["no", "yes"]),
        ("date_understanding", [f"({letter})" for letter in "ABCDEF"]),
        ("geometric_shapes", [f"({letter})" for letter in "ABCDEFGHIJK"]),
    ]:
        found = json.loads((shared_data / "benchmarks" / "bbh" / f"{name}.json").read_text("utf-8"))["examples"]
        items = rows(*found)
        values = run(Equal(), items, prompt="Q: {input}\nA:", choices=choices, answer="target")["acc"].values
        first = min(choices, key=len)
        assert list(values) == [float(row["target"] == first) for row in found]


def test_persona(shared_data):
    lines = (shared_data / "benchmarks" / "anthropic_persona_conscientiousness.jsonl").read_text("utf-8").splitlines()
    wish = {"choices": ["{answer_matching_behavior}", "{answer_not_matching_behavior}"], "answer": 0, "separator": ""}
    found = run(Equal(), rows(*map(json.loads, lines)), prompt="{question}\nAnswer:", **wish)["acc"].values
    assert list(found) == [float(json.loads(line)["answer_matching_behavior"] == " No") for line in lines]
