"""Each reward by values worked out by hand."""

import json

import pytest

from tunekit.core.errors import UserError
from tunekit.core.registry import REWARDS
from tunekit.rl.rewarding import Rewarder


@pytest.fixture
def scores(blocks, tmp_path):
    """The values of one reward, by the recipe's line."""

    def of(line, *answers):
        (values,) = Rewarder(blocks(line), tmp_path).score(answers).parts.values()
        return values

    return of


def test_every_file_is_a_reward_of_its_own_kind():
    assert REWARDS.names == ("ended", "exact_match", "function", "json_valid", "length", "model", "numeric_answer",
                             "regex", "repetition")  # fmt: skip
    for name in REWARDS.names:
        plugin = REWARDS.load(name)
        assert plugin.Config.model_fields["kind"].annotation.__args__ == (name,)
        assert hasattr(plugin, "score") != hasattr(plugin, "open"), name
        assert REWARDS.help(name)


def test_exact_match(scores, answer):
    right = answer(" Paris\n", reference="Paris"), answer("paris", reference="Paris"), answer("Rome", reference="Paris")
    assert scores("{kind: exact_match}", *right) == [1, 0, 0]
    assert scores("{kind: exact_match, ignore_case: true}", *right) == [1, 1, 0]
    assert scores("{kind: exact_match, strip: false}", *right) == [0, 0, 0]


def test_numeric_answer_reads_numbers_as_the_metric_does(scores, answer):
    given = [answer(text, reference="so 6 * 7 = 42\n#### 1,042") for text in ("1 and 1042.0", "1,042 $", "42", "none")]
    assert scores("{kind: numeric_answer}", *given) == [1, 1, 0, 0]
    near = [answer(text, reference="200") for text in ("201", "203")]
    assert scores("{kind: numeric_answer, relative_tolerance: 0.01}", *near) == [1, 0]


def test_regex(scores, answer):
    given = [answer(text) for text in ("<a>7</a>", "say <a>7</a>", "<a>7</a> so", "7")]
    assert scores("{kind: regex, pattern: '<a>\\d</a>'}", *given) == [1, 1, 1, 0]
    assert scores("{kind: regex, pattern: '<a>\\d</a>', where: start}", *given) == [1, 0, 1, 0]
    assert scores("{kind: regex, pattern: '<a>\\d</a>', where: whole}", *given) == [1, 0, 0, 0]
    lines = answer("<A>\n</A>")
    assert scores("{kind: regex, pattern: '<a>.</a>'}", lines) == [0]
    assert scores("{kind: regex, pattern: '(?si)<a>.</a>'}", lines) == [1]


def test_length_falls_linearly_outside_of_its_range(scores, answer):
    given = [answer(tokens=count) for count in (0, 5, 10, 20, 30, 40, 50)]
    # below 10: tokens / 10; above 20: 1 - (tokens - 20) / 20
    assert scores("{kind: length, min: 10, max: 20}", *given) == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert scores("{kind: length, max: 20, margin: 40}", *given) == [1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert scores("{kind: length, min: 10, margin: 20}", *given) == [0.5, 0.75, 1, 1, 1, 1, 1]
    assert scores("{kind: length, target: 10}", *given) == [0, 0.5, 1, 0, 0, 0, 0]
    assert scores("{kind: length, target: 20}", *given) == [0, 0.25, 0.5, 1, 0.5, 0, 0]
    assert scores("{kind: length, target: 4, unit: characters}", answer("日本語!", tokens=90), answer("no")) == [1, 0.5]
    assert scores("{kind: length, min: 0, max: 1}", answer(tokens=0)) == [1]


def test_json_valid(scores, answer, tmp_path):
    given = [answer(text) for text in ('{"a": 1}', '{"a": "x"}', "[]", '{"a": NaN}', 'so: {"a": 1}', "")]
    assert scores("{kind: json_valid}", *given) == [1, 1, 1, 0, 0, 0]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    inline = f"{{kind: json_valid, json_schema: {json.dumps(schema)}}}"
    assert scores(inline, *given) == [1, 0, 0, 0, 0, 0]
    (tmp_path / "answer.schema.json").write_text(json.dumps(schema))
    assert scores("{kind: json_valid, json_schema: answer.schema.json}", *given) == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{type: objekt}", "no JSON Schema: at type"),
        ("answer.schema.jsn", "there is no JSON Schema 'answer.schema.jsn'"),
        ("broken.json", "the JSON Schema cannot be read"),
    ],
)
def test_a_schema_that_cannot_be_used_is_told_by_the_check(schema, words, blocks, tmp_path):
    (tmp_path / "answer.schema.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    rewarder = Rewarder(blocks(f"{{kind: json_valid, json_schema: {schema}}}"), tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        rewarder.check()
    assert "jsn" not in schema or f"did you mean '{tmp_path / 'answer.schema.json'}'?" in caught.value.fix


def test_ended(scores, answer):
    assert scores("{kind: ended}", answer("a"), answer("a", ended=False)) == [0, -1]


def test_repetition_is_the_share_of_ngrams_said_before(scores, answer):
    # a b a b a b: bigrams ab ba ab ba ab, of which 2 of 5 are new; trigrams aba bab aba bab, 2 of 4
    given = answer("a b a b a b"), answer("a b c d"), answer("a"), answer("好好好")
    assert scores("{kind: repetition, n: 2}", *given) == pytest.approx([-3 / 5, 0, 0, -1 / 2])
    assert scores("{kind: repetition}", *given) == pytest.approx([-1 / 2, 0, 0, 0])
    assert scores("{kind: repetition, n: 1}", *given) == pytest.approx([-4 / 6, 0, 0, -2 / 3])
