"""Preparing data: every input row has one fate, the split is exact, weights and limits do what they say."""

from __future__ import annotations

import pytest
from preparation_for_tests import Made, balanced, chat, recipe, talk, tokens_of, write

from tunekit.core.errors import DataError

LONG = "word " * 100
TOO_LATE = "no trained token within data.max_length"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


CRAFTED = [
    chat("Hi", "Hello."),  # 1 kept
    chat("Tell me all", LONG),  # 2 truncated: the answer begins within 64 tokens and ends beyond
    chat(LONG, "Yes."),  # 3 dropped: the answer begins beyond 64 tokens
    '{"messages": [{"role": "user"',  # 4 dropped: broken JSON
    {"messages": [{"role": "user", "content": "Anyone?"}]},  # 5 dropped: nobody answers
    {"messages": [{"role": "user", "content": "A"}, {"role": "robot", "content": "B"}]},  # 6 dropped: unknown role
    chat("Hi", "Hello."),  # 7 the same text as 1
    chat("Bye", "See you."),  # 8 kept
    {"text": "no conversation"},  # 9 dropped: no messages
]


def test_every_row_has_its_fate(tmp_path):
    path = write(tmp_path / "rows.jsonl", CRAFTED)
    made = Made(recipe({"path": str(path), "format": "chat"}, data__duplicates="drop"), tmp_path)
    fates = [(line, fate) for line, fate, _ in made.fates()]
    assert fates == [
        (1, "kept"), (2, "truncated"), (3, "dropped"), (4, "dropped"), (5, "dropped"), (6, "dropped"),
        (7, "duplicate"), (8, "kept"), (9, "dropped"),
    ]  # fmt: skip
    reasons = {entry.origin.line: (entry.reason, entry.detail) for entry in made.ledger}
    assert reasons[2][0] == "cut at data.max_length"
    assert reasons[3][0] == TOO_LATE and "the answer begins after " in reasons[3][1]
    assert "JSON" in reasons[4][0]
    assert "assistant" in reasons[5][0] and "robot" in reasons[6][0] and "messages" in reasons[9][0]
    assert reasons[7][0] == "duplicate" and reasons[7][1].endswith("rows.jsonl:1")
    assert made.summary["train"] | {"reasons": 0} == {
        "rows": 9, "kept": 2, "truncated": 1, "dropped": 5, "duplicate": 1, "unused": 0, "reasons": 0,
        "tokens": sum(entry.tokens for entry in made.ledger),
        "trained_tokens": sum(entry.trained_tokens for entry in made.ledger),
        "lost_tokens": sum(entry.lost_tokens for entry in made.ledger),
    }  # fmt: skip
    assert balanced(made.summary) and made.lines("train") == [1, 2, 8]


def test_the_ledgers_tokens_are_those_of_transformers(tmp_path):
    path = write(tmp_path / "rows.jsonl", CRAFTED)
    made = Made(recipe({"path": str(path), "format": "chat"}), tmp_path)
    for number in (0, 1, 2, 6, 7):
        entry, size = made.ledger[number], tokens_of(made.inputs.tokenizer, CRAFTED[number])
        assert entry.tokens + entry.lost_tokens == size, number
    assert made.ledger[1].tokens == 64 and made.ledger[2].tokens == 0
    # trained of "Hello.": its own tokens and the end of the turn
    hello = len(made.inputs.tokenizer("Hello.", add_special_tokens=False)["input_ids"]) + 1
    assert made.ledger[0].trained_tokens == hello == sum(label >= 0 for label in made.rows()[0]["labels"])


def test_duplicates_are_kept_unless_they_are_to_be_dropped(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(1), talk(2), talk(1)])
    made = Made(recipe(path), tmp_path)
    assert made.fates()[2][1:] == ("kept", "duplicate that is kept") and made.lines("train") == [1, 2, 3]


def test_too_many_lost_rows_are_refused_with_the_first_five(tmp_path):
    bad = ["{broken"] * 7
    path = write(tmp_path / "rows.jsonl", [*(talk(n) for n in range(13)), *bad])
    with pytest.raises(DataError) as caught:
        Made(recipe(path, data__max_drop_rate=0.34), tmp_path)
    problems = caught.value.problems
    assert problems[0].what == "7 of 20 train rows cannot be used (35.0%; allowed: 34.0%)"
    assert [problem.where.rsplit(":", 1)[1] for problem in problems[1:6]] == ["14", "15", "16", "17", "18"]
    assert problems[6].what.startswith("and 2 more rows") and len(problems) == 7
    assert caught.value.exit_code == 3
    assert Made(recipe(path, data__max_drop_rate=0.35), tmp_path).summary["train"]["dropped"] == 7


def test_a_split_without_a_row_left_is_refused_whatever_is_allowed(tmp_path):
    path = write(tmp_path / "rows.jsonl", [chat(LONG, "Yes.")] * 6)
    for packing in (False, True):
        with pytest.raises(DataError, match="6 of 6 train rows cannot be used") as caught:
            Made(recipe(path, data__packing=packing), tmp_path)
        assert TOO_LATE in caught.value.problems[1].what


@pytest.mark.parametrize(("spec", "held"), [({"count": 7}, 7), ({"fraction": 0.1}, 4), ({"fraction": 0.001}, 1)])
def test_the_split_is_exact_and_seeded(spec, held, tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(40)])
    made = Made(recipe(path, data__eval=spec), tmp_path)
    assert len(made.rows("eval")) == held and made.summary["eval"]["rows"] == held
    assert sorted(made.lines("train") + made.lines("eval")) == list(range(1, 41))
    again = Made(recipe(path, data__eval=spec, data__max_length=65), tmp_path)
    other = Made(recipe(path, data__eval=spec, train__seed=1), tmp_path)
    assert again.lines("eval") == made.lines("eval")
    assert held == 1 or other.lines("eval") != made.lines("eval")


def test_equal_texts_stay_on_one_side(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n % 20) for n in range(60)])
    for seed in range(5):
        made = Made(recipe(path, data__eval={"count": 6}, train__seed=seed), tmp_path)
        texts = {split: {line % 20 for line in made.lines(split)} for split in ("train", "eval")}
        assert not texts["train"] & texts["eval"] and len(made.lines("eval")) == 6
    alone = Made(recipe(path, data__eval={"count": 4}), tmp_path)  # 4 is no whole number of triples: one row more
    assert len(alone.lines("eval")) == 6 and balanced(alone.summary)


def test_more_held_out_rows_than_there_are_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(5)])
    with pytest.raises(DataError, match="5 rows are to be held out, but only 5 rows can be used"):
        Made(recipe(path, data__eval={"count": 5}), tmp_path)


def test_named_eval_rows_that_are_trained_on_are_refused_by_name(tmp_path):
    train = write(tmp_path / "train.jsonl", [talk(n) for n in range(20)])
    held = write(tmp_path / "held.jsonl", [talk(n) for n in (30, 3, 31, 17)])
    with pytest.raises(DataError, match=r"held-out text is also trained on \(2 rows\)") as caught:
        Made(recipe(train, data__eval=[{"path": str(held)}]), tmp_path)
    where = caught.value.problems[0].where
    assert "held.jsonl:2" in where and "train.jsonl:4" in where
    assert "held.jsonl:4" in where and "train.jsonl:18" in where


@pytest.mark.parametrize("overlong", ["truncate", "drop", "error"])
def test_overlong_rows(overlong, tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(1), chat("All", LONG), talk(2)])
    wanted = recipe(path, data__overlong=overlong)
    if overlong == "error":
        with pytest.raises(DataError, match=r"longer than data\.max_length: \d+ tokens, 64 are allowed") as caught:
            Made(wanted, tmp_path)
        assert caught.value.problems[0].where.endswith("rows.jsonl:2")
        return
    made = Made(wanted, tmp_path)
    expected = {"truncate": ("truncated", "cut at data.max_length"), "drop": ("dropped", "longer than data.max_length")}
    assert made.fates()[1][1:] == expected[overlong]
    assert len(made.rows()) == (3 if overlong == "truncate" else 2)


def test_long_text_is_dropped_or_refused_when_the_recipe_says_so(tmp_path):
    path = write(tmp_path / "texts.jsonl", [{"text": "short"}, {"text": LONG}])
    dropped = Made(recipe(path, data__overlong="drop", data__max_drop_rate=0.5), tmp_path)
    assert dropped.fates()[1] == (2, "dropped", "longer than data.max_length")
    with pytest.raises(DataError, match=r"longer than data\.max_length") as caught:
        Made(recipe(path, data__overlong="error"), tmp_path)
    assert caught.value.problems[0].where.endswith("texts.jsonl:2")


@pytest.mark.parametrize("packing", [False, True])
def test_a_long_document_is_cut_without_the_loss_of_a_token(packing, tmp_path):
    texts = [" ".join(f"{n}" for n in range(size)) for size in (5, 400, 63, 129)]
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    made = Made(recipe(path, method="pretrain", data__packing=packing), tmp_path)
    tokenizer = made.inputs.tokenizer
    whole = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert all(entry.fate == "kept" and entry.lost_tokens == 0 for entry in made.ledger)
    assert [entry.tokens for entry in made.ledger] == [len(ids) for ids in whole]
    parts = {n: [] for n in range(4)}
    for row in made.rows():
        assert row["length"] == len(row["input_ids"]) <= 64
        cuts = [*row["starts"], row["length"]]
        for number, begin, end in zip(row["rows"], cuts, cuts[1:], strict=False):
            assert end - begin >= 2
            parts[number].append(row["input_ids"][begin:end])
    for number, ids in enumerate(whole):
        pieces = parts[number] if not packing else sorted(parts[number], key=lambda p: find(ids, p))
        assert [token for piece in pieces for token in piece] == ids


def find(whole, part):
    return next(i for i in range(len(whole)) if whole[i : i + len(part)] == part)


def test_weights_and_limits(tmp_path):
    one = write(tmp_path / "one.jsonl", [talk(n) for n in range(30)])
    two = write(tmp_path / "two.jsonl", [talk(n) for n in range(100, 500)])
    half = {"path": str(two), "weight": 0.5}
    made = Made(recipe({"path": str(one), "weight": 2.0, "limit": 11}, half), tmp_path)
    counts = made.summary["train"]
    drawn = 400 - counts["unused"]
    assert counts["rows"] == 411 and counts["kept"] == 11 + drawn and balanced(made.summary)
    assert 160 <= drawn <= 240  # 200 +- 4 standard deviations
    assert len(made.rows()) == 2 * 11 + drawn == made.facts["examples"]
    unused = [entry for entry in made.ledger if entry.fate == "unused"]
    assert {entry.reason for entry in unused} == {"not drawn by the source's weight"} and unused[0].lost_tokens > 0
    seen = [n for row in made.rows() for n in row["rows"]]
    assert all(seen.count(n) == 2 for n in range(11))
    many = Made(recipe({"path": str(one), "weight": 2.5}), tmp_path)
    assert 60 < len(many.rows()) < 90 and many.summary["train"]["kept"] == 30
    assert Made(recipe({"path": str(one), "weight": 2.5}, data__cache=False), tmp_path).rows() == many.rows()


def test_a_weighted_row_that_is_held_out_is_seen_once(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(10)])
    made = Made(recipe({"path": str(path), "weight": 3.0}, data__eval={"count": 2}), tmp_path)
    assert len(made.rows("eval")) == 2 and len(made.rows()) == 24
