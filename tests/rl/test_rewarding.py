"""Blocks of a recipe, their weighted sum, and functions of the user with their faults."""

import math
import sys

import pytest

from tunekit.core.errors import DataError, UserError
from tunekit.rl.rewarding import Rewarder

# ---- the recipe


def test_blocks_of_a_recipe_are_typed_and_those_of_function_and_model_need_no_kind(blocks):
    found = blocks("""
        {kind: exact_match, ignore_case: true}
        {function: "my_rewards.py:score", weight: 2, name: mine}
        {model: runs/reward, weight: -0.5}
        {kind: model, model: runs/other}
    """)
    assert [(block.kind, block.weight, block.name) for block in found] == [
        ("exact_match", 1.0, None), ("function", 2.0, "mine"), ("model", -0.5, None), ("model", 1.0, None),
    ]  # fmt: skip
    assert found[0].ignore_case and found[1].function == "my_rewards.py:score" and found[3].batch_size == 16


def test_blocks_come_back_from_the_plans_json(blocks):
    from pydantic import TypeAdapter

    from tunekit.rl.rewarding import RewardsField

    found = blocks("""
        {function: "a.py:b"}
        {kind: json_valid, json_schema: {required: [a, b]}}
        {kind: length, min: 3}
    """)
    kept = TypeAdapter(RewardsField)
    assert kept.validate_json(kept.dump_json(found)) == found
    assert kept.validate_python(found) == found


@pytest.mark.parametrize(
    ("line", "place", "words", "fix"),
    [
        ("{kind: exact_mach}", "3:7", "'stub.reward.0' must be of a kind among 'ended', 'exact_match'",
         "did you mean 'exact_match'?"),
        ("{kind: exact_match, ignorecase: true}", "3:27", "unknown key 'stub.reward.0.ignorecase'",
         "did you mean 'ignore_case'?"),
        ("{function: 'a.py:f', wieght: 2}", "3:28", "unknown key 'stub.reward.0.wieght'", "did you mean 'weight'?"),
        ("{function: 'a.py:f', weight: much}", "3:36", "'stub.reward.0.weight' must be a number; it is text", ""),
        ("{function: a.py}", "3:18", "'stub.reward.0.function' must be of the form `path/to/file.py:name`", ""),
        ("{function: 7}", "3:18", "'stub.reward.0.function' must be text", ""),
        ("{model: ''}", "3:15", "'stub.reward.0.model' must be text that is not empty", ""),
        ("{weight: 1}", "3:7", "'stub.reward.0' must be a block with a `kind`, a `function` or a `model`", ""),
        ("{function: 'a.py:f', model: m}", "3:7", "must be a block with a `kind`", ""),
        ("{kind: 3}", "3:7", "must be of a kind among", "known: "),
        ("exact_match", "3:7", "'stub.reward.0' must be", ""),
        ("{kind: regex, pattern: '('}", "3:30", "must be a regular expression (missing ), unterminated", ""),
        ("{kind: regex}", "3:7", "missing key 'stub.reward.0.pattern'", "add `pattern:`"),
        ("{kind: length}", "3:7", "must be either with a `target`, or with `min`, `max` or both", ""),
        ("{kind: length, target: 3, max: 4}", "3:7", "must be either with a `target`", ""),
        ("{kind: length, min: 5, max: 4}", "3:7", "with a `min` (5) that is not above `max` (4)", ""),
        ("{kind: repetition, n: 0}", "3:29", "'stub.reward.0.n' must be >= 1", ""),
        ("{kind: ended, weight: .nan}", "3:29", "'stub.reward.0.weight'", ""),
    ],
)  # fmt: skip
def test_a_wrong_block_is_told_with_its_place(line, place, words, fix, blocks):
    with pytest.raises(UserError) as caught:
        blocks(line)
    (problem,) = caught.value.problems
    assert problem.where == f"recipe.yaml:{place}"
    assert words in problem.what
    assert fix in problem.fix


def test_all_wrong_blocks_are_told_at_once(blocks):
    with pytest.raises(UserError) as caught:
        blocks("{kind: regexp}\n{kind: length, most: 3, max: 2}")
    assert [problem.where for problem in caught.value.problems] == ["recipe.yaml:3:7", "recipe.yaml:4:22"]


def test_two_blocks_of_one_name_are_refused(blocks):
    with pytest.raises(UserError, match="two are called 'x'"):
        blocks("{kind: ended, name: x}\n{kind: length, max: 3, name: x}")


def test_no_reward_at_all_is_refused():
    from pydantic import TypeAdapter, ValidationError

    from tunekit.rl.rewarding import RewardsField

    with pytest.raises(ValidationError, match="a list of one block or more"):
        TypeAdapter(RewardsField).validate_json("[]")


@pytest.mark.parametrize(
    ("given", "wanted", "fix"),
    [
        ("null", "a list of one block or more", "for example `reward: [{kind: exact_match}]`"),
        ("[]", "a list of one block or more", "for example `reward: [{kind: exact_match}]`"),
        ('"exact_match"', "a list of blocks", "write `reward: [{kind: exact_match}]`"),
        ('"numeric_anwser"', "a list of blocks", "write `reward: [{kind: numeric_answer}]`"),
        ('"regex"', "a list of blocks", "write `reward: [{kind: regex, pattern: ...}]`"),
        ('"mine.py:polite"', "a list of blocks", "write `reward: [{function: 'mine.py:polite'}]`"),
        ('{"kind": "ended"}', "a list of blocks", "put the block into a list"),
        ('["ended"]', "a block of keys", "write `{kind: ended}`"),
        ('[{"exact_match": {}}]', "a block with a `kind`", "write `{kind: exact_match}`, its keys beside it"),
        ('[{"pattern": "a"}]', "a block with a `kind`", "add `kind: regex`"),
        ('[{"weight": 1}]', "a block with a `kind`", "for example `reward: [{kind: exact_match}]`"),
        ('[{"function": "a.py:f", "model": "m"}]', "a block with a `kind`", "make two blocks of it"),
        ('[{"kind": "length"}]', "either with a `target`", "for example `{kind: length, max: 200}`"),
        ('[{"kind": "length", "min": 5, "max": 4}]', "that is not above `max`", "exchange the two"),
        ('[{"kind": "regex", "pattern": "("}]', "a regular expression (missing )", "for the text itself write \\("),
        ('[{"function": "mine.py"}]', "path/to/file.py:name", "for example `function: mine.py:name_of_the_function`"),
        ('[{"function": "mine:polite"}]', "path/to/file.py:name", "for example `function: mine.py:polite`"),
        ('[{"kind": "ended", "name": "x"}, {"kind": "ended", "name": "x"}]', "names differ", "give each a `name`"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_rewards_is_refused_with_what_to_write(given, wanted, fix):
    """The note of the validator's error is the fix; the words of both are the user's."""
    from pydantic import TypeAdapter, ValidationError

    from tunekit.rl.rewarding import RewardsField

    with pytest.raises(ValidationError) as caught:
        TypeAdapter(RewardsField).validate_json(given)
    error = caught.value.errors()[0]["ctx"]["error"]
    assert wanted in str(error) and fix in error.__notes__[0]


def test_blocks_without_a_name_are_told_apart(blocks):
    found = blocks("""
        {kind: length, max: 3}
        {kind: length, min: 1}
        {kind: ended, name: length_2}
        {function: "a/b.py:good"}
        {function: "c.py:good"}
        {model: runs/judge/}
    """)
    assert list(Rewarder(found).named) == ["length", "length_3", "length_2", "good", "good_2", "judge"]


# ---- the sum


def test_the_total_is_the_weighted_sum_and_what_does_not_apply_counts_nothing(blocks, answer, user_file, tmp_path):
    user_file("def odd(completions, **_):\n    return [float(t) if t.isdigit() else None for t in completions]\n")
    found = blocks("""
        {kind: regex, pattern: '\\d', weight: 2}
        {function: "mine.py:odd", weight: 0.5}
        {kind: ended, weight: 0}
    """)
    scored = Rewarder(found, tmp_path).score([answer("7"), answer("x", ended=False), answer("x9")])
    # 2 * 1 + 0.5 * 7 + 0 * 0;   2 * 0 + nothing + 0 * -1;   2 * 1 + nothing + 0 * 0
    assert scored.total == [5.5, 0.0, 2.0]
    assert scored.parts["regex"] == [1, 0, 1]
    assert scored.parts["ended"] == [0, -1, 0]
    assert scored.parts["odd"][0] == 7 and all(math.isnan(value) for value in scored.parts["odd"][1:])


def test_no_answers_have_no_rewards(blocks, user_file, tmp_path):
    user_file("def f(completions):\n    return [1.0]\n")
    scored = Rewarder(blocks("{kind: numeric_answer}\n{function: 'mine.py:f'}"), tmp_path).score([])
    assert scored.total == [] and scored.parts == {"numeric_answer": [], "f": []}


def test_rows_without_a_right_answer_are_refused_with_their_place(blocks, answer):
    rewarder = Rewarder(blocks("{kind: exact_match}\n{kind: numeric_answer}\n{kind: ended}"))
    with pytest.raises(DataError) as caught:
        rewarder.check_rows([("7", "a.jsonl:1"), ("", "a.jsonl:2"), ("seven", "a.jsonl:3")])
    assert [(p.where, p.what) for p in caught.value.problems] == [
        ("a.jsonl:2", "reward 'exact_match': the row has no right answer"),
        ("a.jsonl:2", "reward 'numeric_answer': the row has no right answer"),
        ("a.jsonl:3", "reward 'numeric_answer': there is no number in the right answer: 'seven'"),
    ]
    with pytest.raises(DataError, match="no number"):
        rewarder.score([answer("7", reference="seven")])
    Rewarder(blocks("{kind: ended}")).check_rows([("", "a.jsonl:1")])


def test_rows_with_the_same_fault_are_one_problem_with_their_number(blocks):
    rewarder = Rewarder(blocks("{kind: exact_match}\n{kind: numeric_answer}"))
    rows = [("", f"a.jsonl:{line}") for line in range(1, 1241)] + [("six", "b.jsonl:1"), ("seven", "b.jsonl:2")]
    with pytest.raises(DataError) as caught:
        rewarder.check_rows(rows)
    first = "a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, a.jsonl:5 and 1,235 more"
    assert [(p.what, p.where) for p in caught.value.problems] == [
        ("reward 'exact_match': the row has no right answer, in 1,240 rows", first),
        ("reward 'numeric_answer': the row has no right answer, in 1,240 rows", first),
        ("reward 'numeric_answer': there is no number in the right answer, in 2 rows (the first: 'six')",
         "b.jsonl:1, b.jsonl:2"),
    ]  # fmt: skip
    assert all("columns: {reference: NAME}" in problem.fix for problem in caught.value.problems)


# ---- a function of the user


def test_a_function_is_called_as_trl_calls_it(blocks, answer, user_file, tmp_path):
    user_file("""
from dataclasses import dataclass

seen = []

@dataclass
class Kept:
    value: "int"

def everything(prompts, completions, **columns):
    seen.append((prompts, completions, columns))
    return [float(len(text)) for text in completions]

def some(completions, level, bonus=(0, 0)):
    return [a + b for a, b in zip(level, bonus)]

def asked():
    return seen
""")
    found = blocks("{function: 'mine.py:everything'}\n{function: 'mine.py:some'}")
    rewarder = Rewarder(found, tmp_path)
    rewarder.check()
    given = [answer("abc", prompt="P", level=1, bonus=5), answer("d", prompt="Q", level=2, prompts="not this")]
    with pytest.raises(UserError, match="raised TypeError"):  # 2 + None: the second row has no bonus
        rewarder.score(given)
    scored = rewarder.score([given[0]])
    assert scored.parts == {"everything": [3.0], "some": [6.0]} and scored.total == [9.0]
    asked = rewarder._open["everything"]._function.__globals__["seen"]
    assert asked == [
        (["P", "Q"], ["abc", "d"], {"level": [1, 2], "bonus": [5, None]}),
        (["P"], ["abc"], {"level": [1], "bonus": [5]}),
    ]  # the file was run once, and the column `prompts` does not hide the prompts
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.py"]  # nothing was written beside it


def test_a_path_begins_at_the_recipes_folder_and_then_where_one_works(blocks, answer, user_file, tmp_path, monkeypatch):
    user_file("def f(completions):\n    return [1]\n")
    found = blocks("{function: 'mine.py:f'}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Rewarder(found, tmp_path).score([answer()]).total == [1]
    monkeypatch.chdir(tmp_path)
    assert Rewarder(found, elsewhere).score([answer()]).total == [1]
    (elsewhere / "mine.py").write_text("def f(completions):\n    return [2]\n")
    assert Rewarder(found, elsewhere).score([answer()]).total == [2]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1.0]", "returned 1 values for 2 answers"),
        ("return 1.0", "returned float, not a list"),
        ("return None", "returned NoneType, not a list"),
        ("return '12'", "returned str, not a list"),
        ("return [1.0, '2']", "returned '2', which is no number, for the answer 'bad"),
        ("return [1.0, [2]]", r"returned \[2\], which is no number"),
        ("return [1.0, float('nan')]", "returned nan for the answer 'bad"),
        ("return [1.0, float('-inf')]", "returned -inf for the answer 'bad"),
        ("return [1.0, 1j]", "returned 1j, which is no number"),
    ],
)
def test_what_a_function_must_not_return(body, words, blocks, answer, user_file, tmp_path):
    user_file(f"def f(completions):\n    {body}\n")
    rewarder = Rewarder(blocks("{function: 'mine.py:f'}"), tmp_path)
    rewarder.check()
    with pytest.raises(UserError, match=f"reward function 'f' {words}") as caught:
        rewarder.score([answer("good", where="a.jsonl:1"), answer("bad" + "!" * 500, where="a.jsonl:2")])
    assert len(str(caught.value)) < 250 and caught.value.exit_code == 2
    assert caught.value.problems[0].where == ("a.jsonl:2" if "'bad" in words or "no number" in words else "a.jsonl:1")


def test_numbers_of_other_libraries_are_numbers(blocks, answer, user_file, tmp_path):
    user_file("""
import numpy, torch

def array(completions):
    return numpy.array([0.5, 2], dtype=numpy.float32)

def tensor(completions):
    return torch.tensor([0.5, 2])

def single(completions):
    return [numpy.float32(0.5), True]
""")
    found = blocks("{function: 'mine.py:array'}\n{function: 'mine.py:tensor'}\n{function: 'mine.py:single'}")
    parts = Rewarder(found, tmp_path).score([answer(), answer()]).parts
    assert parts == {"array": [0.5, 2.0], "tensor": [0.5, 2.0], "single": [0.5, 1.0]}


def test_a_function_that_raises_is_told_with_the_answer_it_raises_for(blocks, answer, user_file, tmp_path):
    file = user_file("""
def strict(completions):
    return [one(text) for text in completions]

def one(text):
    return float(text)

def together(completions):
    assert len(completions) < 2
    return [0.0]

def leaves(completions):
    raise SystemExit(3)
""")
    given = [answer("1", where="a.jsonl:4"), answer("oops " * 99, where="a.jsonl:9"), answer("no", where="a.jsonl:10")]
    strict = Rewarder(blocks("{function: 'mine.py:strict'}"), tmp_path)
    with pytest.raises(UserError) as caught:
        strict.score(given)
    (problem,) = caught.value.problems
    assert problem.where == "a.jsonl:9" and problem.fix == f"see {file}:6"
    assert "reward function 'strict' raised ValueError: could not convert string to float" in problem.what
    assert problem.what.endswith(f"for the answer {('oops ' * 12 + '...')!r}")
    together = Rewarder(blocks("{function: 'mine.py:together'}"), tmp_path)
    with pytest.raises(UserError, match="raised AssertionError for the 3 answers together that begin with the answer"):
        together.score(given)
    with pytest.raises(UserError, match="raised SystemExit: 3"):
        Rewarder(blocks("{function: 'mine.py:leaves'}"), tmp_path).score(given)


def test_stops_and_want_of_memory_are_not_the_functions_fault(blocks, answer, user_file, tmp_path):
    user_file("def stop(completions):\n    raise KeyboardInterrupt\n\ndef full(completions):\n    raise MemoryError\n")
    for name, error in (("stop", KeyboardInterrupt), ("full", MemoryError)):
        with pytest.raises(error):
            Rewarder(blocks(f"{{function: 'mine.py:{name}'}}"), tmp_path).score([answer()])


@pytest.mark.parametrize(
    ("text", "words", "place", "fix"),
    [
        ("def scores(x): ...", "there is no function 'score' in this file", "mine.py", "did you mean 'scores'?"),
        ("from math import sqrt", "there is no function 'score'", "mine.py", "write one: `def score(completions):`"),
        ("score = 3\ndef other(): ...", "'score' is no function, but of type int", "mine.py",
         "functions in the file: other"),
        ("score = 3\ndef scores(): ...", "'score' is no function", "mine.py", "did you mean 'scores'?"),
        ("async def score(completions): ...", "'score' is an async function", "mine.py", "name a plain function"),
        ("class score: ...", "'score' is a class", "mine.py", "name a plain function"),
        ("def score(completions, /): ...", "cannot be given by name", "mine.py", "take the `/` out"),
        ("\n\ndef score(:", "cannot be run: SyntaxError: invalid syntax", "mine.py:3", ""),
        ("x = 1\nx / 0", "cannot be run: ZeroDivisionError", "mine.py:2", ""),
        ("import helper", "ModuleNotFoundError: No module named 'helper'", "mine.py:1", "the file is run by itself"),
        ("import nowhere_at_all", "ModuleNotFoundError", "mine.py:1", ""),
        ("raise SystemExit", "cannot be run: SystemExit", "mine.py:1", ""),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_before_any_model_is_loaded(
    text, words, place, fix, blocks, user_file, tmp_path
):
    user_file(text + "\n")
    (tmp_path / "helper.py").write_text("")
    before = set(sys.modules)
    with pytest.raises(UserError) as caught:
        Rewarder(blocks("{function: 'mine.py:score'}"), tmp_path).check()
    (problem,) = caught.value.problems
    assert words in problem.what
    assert problem.where == str(tmp_path / place)
    assert fix in problem.fix
    if "cannot be run" in words:
        assert not [name for name in set(sys.modules) - before if name.startswith("tunekit_reward")]


def test_missing_files_are_told_all_at_once_with_the_nearest_name(blocks, tmp_path):
    (tmp_path / "my_rewards.py").write_text("")
    with pytest.raises(UserError) as caught:
        Rewarder(blocks("{function: 'my_reward.py:f'}\n{model: 'runs/rewrd'}"), tmp_path).check()
    first, second = caught.value.problems
    assert first.what == "there is no file 'my_reward.py'"
    assert first.fix == f"did you mean '{tmp_path / 'my_rewards.py'}'?"
    assert second.what == "there is no folder 'runs/rewrd'" and "looked for" in second.fix
    assert "train a reward model with `tunekit reward`" in second.fix


def test_what_has_no_place_of_its_own_is_told_with_its_blocks(blocks, user_file, tmp_path):
    user_file("def f(completions:\n")
    given = blocks("{kind: ended}\n{function: 'none/at/all.py:f'}\n{function: 'mine.py:f'}\n{model: 'runs/rewrd'}")
    with pytest.raises(UserError) as caught:
        Rewarder(given, tmp_path).check("grpo.reward")
    assert [problem.where for problem in caught.value.problems] == [
        "grpo.reward.1", f"{tmp_path / 'mine.py'}:1", "grpo.reward.3",
    ]  # fmt: skip
    assert "def f(completions, **columns):" in caught.value.problems[0].fix


def test_a_column_that_a_function_asks_for_and_the_row_lacks(blocks, answer, user_file, tmp_path):
    user_file("def f(completions, solution, *, level=None):\n    return [0]\n")
    rewarder = Rewarder(blocks("{function: 'mine.py:f'}"), tmp_path)
    with pytest.raises(UserError, match="asks for 'solution', which is no column of the row") as caught:
        rewarder.score([answer("x", solutions="7", where="a.jsonl:3")])
    assert caught.value.problems[0].where == "a.jsonl:3"
    assert caught.value.fix == "did you mean 'solutions'? known: completions, prompts, solutions"
    with pytest.raises(UserError, match="asks for 'solution'") as caught:
        rewarder.score([answer("x", answer="7")])  # 'completions' is not meant
    assert caught.value.fix == "known: answer, completions, prompts"
