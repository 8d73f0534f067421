"""Rows planted in an evaluation are found, with the training row that they were taken from; clean rows are not."""

from __future__ import annotations

import json

import pytest

from tunekit.evaluate.contamination import Index

# 20 words, no two alike, so that any 13 in a row are an n-gram of this text alone
ANIMALS = "ape bat cat dog eel fox gnu hen ibis jay kite lynx mole newt owl pig quail rat seal toad"
TEMPLATE = "Read the review below with care and say in one word whether its author liked the film or not. Review:"


def indexed(*texts, **options):
    index = Index(**options)
    for number, text in enumerate(texts, start=1):
        index.add(text, f"train:{number}")
    return index


def rows_of(path, column):
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)[column] for line in lines if line.strip()]


def looked(index, prompts):
    """What is found, by row number from 1, with the training row's number."""
    index.leave_out(prompts)
    found = {number: index.look(prompt) for number, prompt in enumerate(prompts, start=1)}
    return {number: (match, int(match.where.rpartition(":")[2])) for number, match in found.items() if match}


def test_the_same_text_is_exact_whatever_its_case_punctuation_and_spaces():
    index = indexed("something else", ANIMALS)
    wide = ANIMALS.replace("ape", "ａｐｅ\u200b")
    for text in (ANIMALS, ANIMALS.upper(), ANIMALS.replace(" ", ",\n  ") + "?!", wide):
        match = index.look(text)
        assert (match.kind, match.share, match.where, match.part) == ("exact", 1.0, "train:2", "prompt")


def test_the_share_by_hand():
    # 20 words are 8 n-grams of 13. Seven new words and then 13 old: one of its 8; 14 old: two
    index = indexed(ANIMALS)
    words = ANIMALS.split()
    one = index.look(" ".join([*"1234567", *words[:13]]))
    assert (one.kind, one.share, one.where, one.words) == ("ngram", 1 / 8, "train:1", " ".join(words[:13]))
    assert index.look(" ".join([*"123456", *words[:14]])).share == 2 / 8
    assert index.look(" ".join([*"12345678", *words[:12]])) is None


def test_length_is_a_choice():
    words = ANIMALS.split()
    assert indexed(ANIMALS, ngram=8).look(" ".join([*"12345678", *words[:12]])).share == 5 / 13


def test_a_short_text_matches_in_whole_only_and_with_its_punctuation():
    index = indexed("What is 3*4?", "Paris")
    assert index.look("what is  3 * 4").where == "train:1"
    assert index.look("What is 3/4?") is None
    assert index.look("What is 3*4 in words?") is None
    assert index.look("paris.").where == "train:2"
    assert index.look("") is None


def test_a_short_reference_is_no_evidence_and_a_long_one_is():
    index = indexed("yes", "42", ANIMALS)
    assert index.look("Is a mole a mammal, as most people would say?", "yes") is None
    assert index.look("What do you get when you multiply six by seven?", "42") is None
    match = index.look("Name twenty animals.", f"Here they are. {ANIMALS}")
    assert (match.kind, match.part, match.where, match.share) == ("ngram", "reference", "train:3", 8 / 11)


def test_nothing_is_found_across_the_border_of_prompt_and_reference():
    words = ANIMALS.split()
    assert indexed(ANIMALS).look(" ".join(words[:10]), " ".join(words[10:])) is None


def test_a_template_that_training_shares_is_no_evidence():
    reviews = [f"number{n} was film{n} with actor{n} and music{n}" for n in range(40)]
    index = indexed(*[f"{TEMPLATE} {review}" for review in reviews[:20]])
    evaluation = [f"{TEMPLATE} {review}" for review in reviews[20:]]
    # the fault: without a look at the evaluation's own rows, all of them seem to be in training
    assert all(index.look(prompt) for prompt in evaluation)
    assert looked(index, [*evaluation, f"{TEMPLATE} {reviews[3]}"]) == {21: (index.look(f"{TEMPLATE} {reviews[3]}"), 4)}


def test_the_first_word_after_a_template_does_not_count_with_it():
    # "Good" follows the template in training and in two evaluation rows, too few to be common by themselves
    ends = [f"{word} {n} film{n} actor{n}" for n, word in enumerate(["Good"] * 2 + [f"w{n}" for n in range(58)])]
    index = indexed(f"{TEMPLATE} Good acting throughout")
    assert looked(index, [f"{TEMPLATE} {end}" for end in ends]) == {}


def test_what_stands_behind_a_template_is_found():
    ends = [f"{n} film{n}" for n in range(40)]
    prompts = [f"{TEMPLATE} {end}" for end in [*ends, ANIMALS]]
    assert {number: row for number, (_, row) in looked(indexed("nothing", ANIMALS), prompts).items()} == {41: 2}


def test_a_prompt_that_most_rows_are_is_no_evidence_and_two_of_a_kind_are():
    joke = "Tell me a joke."
    index = indexed(joke, ANIMALS)
    assert looked(index, [joke] * 30) == {}
    assert set(looked(index, [ANIMALS, ANIMALS, *map(str, range(30))])) == {1, 2}


def test_the_row_is_the_one_that_holds_most():
    words = ANIMALS.split()
    start = " ".join(words[:13])
    index = indexed(f"{start} and so on", f"some words before {ANIMALS}")
    index.add("another message of row two", "train:2")
    assert index.look(f"1 {ANIMALS}").where == "train:2"


def test_rows_may_be_added_after_looking_and_in_many_parts(monkeypatch):
    monkeypatch.setattr("tunekit.evaluate.contamination._PENDING", 3)
    index = indexed("one two", ANIMALS, *[f"row {n}" for n in range(50)])
    assert index.look(f"1 {ANIMALS}").where == "train:2"
    index.add(ANIMALS.upper() + " udder", "later:1")
    assert index.look(ANIMALS + " udder").where == "later:1"
    assert index.look(f"1 {ANIMALS}").where == "train:2"


def test_boilerplate_of_training_is_held_a_few_times_only():
    index = indexed(*[f"{ANIMALS} {n}" for n in range(100)])
    # 8 n-grams of the animals, kept for 8 rows each; the last n-gram and the whole are each row's own
    assert len(index) == 8 * 8 + 100 * 2


def test_thai_is_not_taken_for_words_of_one_letter():
    # 13 Thai words are about 52 characters; a dozen shared characters are one everyday phrase
    asked = "ประเทศไทยมีจังหวัดทั้งหมดกี่จังหวัดและจังหวัดใดมีประชากรมากที่สุดในประเทศ"
    index = indexed(asked, "กรุงเทพ")
    assert index.look(f"คำถาม {asked}").where == "train:1"
    assert index.look("ช่วยบอกหน่อยว่าประเทศไทยมีจังหวัดใดบ้างที่อยู่ติดทะเลและมีเกาะสวยงามให้เที่ยวชมได้") is None
    assert index.look("กรุงเทพ").kind == "exact"


def test_an_empty_index_finds_nothing():
    assert Index().look(ANIMALS, ANIMALS) is None


CHANGES = {
    "exact": lambda text, clean: text,
    "case": lambda text, clean: text.upper().replace(",", ";").replace(". ", " - ").rstrip("?.") + " ...",
    "prefix": lambda text, clean: f"Solve this problem step by step: {text}",
    "half": lambda text, clean: " ".join([*text.split()[: len(text.split()) // 2], clean]),
}


@pytest.fixture(scope="module")
def gsm8k(shared_data):
    index = Index()
    train = rows_of(shared_data / "math/gsm8k_train.jsonl", "question")
    for number, question in enumerate(train, start=1):
        index.add(question, f"train:{number}")
    return index, train, rows_of(shared_data / "math/gsm8k_test.first660.jsonl", "question")


def test_ten_planted_rows_among_real_ones(gsm8k):
    index, train, test = gsm8k
    long = [number for number, text in enumerate(train, start=1) if len(text.split()) >= 35]
    planted = {100 + 40 * n: (long[200 * n + 7], kind) for n, kind in enumerate([*CHANGES, *CHANGES, "half", "prefix"])}
    prompts = test[:500]
    for place, (row, kind) in planted.items():
        prompts[place - 1] = CHANGES[kind](train[row - 1], test[600 + place % 50])
    found = looked(index, prompts)
    assert {number: row for number, (_, row) in found.items()} == {place: row for place, (row, _) in planted.items()}
    for place, (_, kind) in planted.items():
        match = found[place][0]
        assert match.kind == ("exact" if kind in ("exact", "case") else "ngram"), (place, kind)
        assert match.share > (0.8 if kind == "prefix" else 0.05)


def test_what_gsm8k_itself_shares(gsm8k):
    # read by eye: 603 and 633 are rows of training with other names and numbers ("A plane travels ... At the same
    # rate, how many additional hours ..."; "Max bought stamps at the post office ..."); 582 shares a sentence of 15
    # words on a film's length, and asks something else
    index, _, test = gsm8k
    found = {number: (row, round(match.share, 2)) for number, (match, row) in looked(index, test).items()}
    assert found == {582: (407, 0.10), 603: (1315, 0.54), 633: (21, 0.30)}


def test_planted_rows_in_chinese(shared_data):
    questions = rows_of(shared_data / "math/cmath_dev.jsonl", "input")
    index = indexed(*questions[:300])
    prompts = questions[300:]
    planted = {20: 5, 60: 50, 100: 120, 140: 200, 180: 250}
    changes = [
        lambda text: text,
        lambda text: text.replace("，", ",").replace("？", " ?"),
        lambda text: "请解答下面的应用题：" + text,
        lambda text: text[: max(16, len(text) // 2)] + "请问还剩下几只小动物？",
        lambda text: "题目：" + text.replace("，", " "),
    ]
    for change, (place, row) in zip(changes, planted.items(), strict=True):
        prompts[place - 1] = change(questions[row - 1])
    found = looked(index, prompts)
    # the one of the data's own: both begin with "a car drives from A to B, each hour" and go on alike for 13 characters
    own = {11: 291}
    assert {number: row for number, (_, row) in found.items()} == planted | own
    assert found[11][0].share < 0.15
    assert [found[place][0].kind for place in planted] == ["exact", "exact", "ngram", "ngram", "ngram"]
