"""Numbers of metrics beside those of the libraries that define them."""

from __future__ import annotations

import csv
import math
import random

import numpy as np
import pytest

from tunekit.core.errors import DataError, UserError
from tunekit.evaluate.metrics._shared.classes import confusion
from tunekit.evaluate.metrics._shared.rouge import common_subsequence
from tunekit.evaluate.scoring import check, score
from tunekit.evaluate.text import TextRules

WORDS = "the cat's dog Running café naïve 3.5% İstanbul x_y a² ½ wonderful , . on mat said NEWLINE"
WORDS = WORDS.replace("NEWLINE", "\n").split(" ")
CHINESE = "今天天气很好，我们去公园吧。２０２４年 北京 iPhone"


def text(rng, longest=25):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, longest)))


def chinese(rng):
    return "".join(rng.choice(CHINESE) for _ in range(rng.randint(1, 25)))


def changed(rng, line):
    between = " " if line.count(" ") > 3 else ""
    return between.join(part for part in (line.split(between) if between else line) if rng.random() < 0.8)


def corpus(write=text, rows=60, references=2):
    rng = random.Random(0)
    right = [[write(rng) or "x" for _ in range(references)] for _ in range(rows)]
    return [changed(rng, rng.choice(row)) for row in right], right


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("options", [{}, {"tokenize": "zh"}, {"tokenize": "char", "lowercase": True}, {"max_order": 2}])
def test_bleu(options, references):
    import sacrebleu

    for write in (text, chinese):
        given, right = corpus(write, references=references)
        names = {"max_order": "max_ngram_order"}
        bleu = sacrebleu.BLEU(**{names.get(key, key): value for key, value in options.items()})
        wanted = bleu.corpus_score(given, list(zip(*right)))
        found = score("bleu", options, given, right)
        assert found.number() == wanted.score
        assert found.number() > 1 or (write is chinese and "tokenize" not in options)
        assert found.note == str(bleu.get_signature())
        sentence = sacrebleu.BLEU(
            **{names.get(key, key): value for key, value in options.items()}, effective_order=True
        )
        assert found.values[0] == sentence.sentence_score(given[0], right[0]).score


def test_bleu_is_smoothed_as_asked():
    import sacrebleu

    for smooth, value in (("exp", None), ("floor", 0.2), ("add-k", 1), ("none", None)):
        wanted = sacrebleu.corpus_bleu(["a b c d"], [["a c b e"]], smooth_method=smooth, smooth_value=value)
        options = {"smooth": smooth, "smooth_value": value}
        found = score("bleu", options, ["a b c d"], [["a c b e"]])
        assert found.number() == wanted.score
        again = np.array(found.totals)
        assert found.statistic(again)[0] == found.statistic(again)[0] == wanted.score


def test_rows_with_different_numbers_of_references():
    import sacrebleu

    given, right = ["the cat sat", "a dog", ""], [["the cat sat", "a cat"], ["the dog ran"], ["x y"]]
    streams = [["the cat sat", "the dog ran", "x y"], ["a cat", None, None]]
    for name, whole in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF()), ("ter", sacrebleu.TER())):
        found = score(name, {}, given, right)
        assert found.number() == whole.corpus_score(given, streams).score
        assert "nrefs:var" in found.note


@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"char_order": 3, "beta": 1, "lowercase": True}])
def test_chrf(options):
    import sacrebleu

    for write in (text, chinese):
        given, right = corpus(write)
        chrf = sacrebleu.CHRF(**options)
        found = score("chrf", options, given, right)
        assert 0 < found.number() == chrf.corpus_score(given, list(zip(*right))).score
        assert found.note == str(chrf.get_signature())
        assert found.values[3] == chrf.sentence_score(given[3], right[3]).score


@pytest.mark.parametrize("options", [{}, {"normalized": True, "asian_support": True}, {"case_sensitive": True}])
def test_ter(options):
    import sacrebleu

    for write in (text, chinese):
        given, right = corpus(write, rows=30)
        ter = sacrebleu.TER(**options)
        found = score("ter", options, given, right)
        assert found.number() == pytest.approx(ter.corpus_score(given, list(zip(*right))).score, rel=1e-14)
        assert found.values[3] == ter.sentence_score(given[3], right[3]).score
        assert not found.higher_is_better


@pytest.mark.parametrize("stemmer", [False, True])
@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_of_text_in_latin_script_is_that_of_the_library(kind, stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    given, right = corpus(rows=150)
    library = RougeScorer([kind], use_stemmer=stemmer)
    wanted = [library.score_multi(row, answer)[kind].fmeasure for answer, row in zip(given, right)]
    assert score(kind, {"use_stemmer": stemmer}, given, right).values == tuple(wanted)
    assert len(set(wanted)) > 20


def test_rouge_of_other_scripts():
    from rouge_score.rouge_scorer import RougeScorer

    given, right = ["今天天气好"], [["今天天气很好"]]
    assert RougeScorer(["rouge1"]).score(right[0][0], given[0])["rouge1"].fmeasure == 0  # why words are found anew
    assert score("rouge1", {}, given, right).number() == pytest.approx(2 * 5 / 11)
    assert score("rouge2", {}, given, right).number() == pytest.approx(2 * 3 / 9)  # 今天 天天 天气
    assert score("rougeL", {}, ["好天气"], right).number() == pytest.approx(2 * 2 / 9)
    assert score("rougeLsum", {}, ["很好\n今天"], [["今天\n天气很好"]]).number() == pytest.approx(2 * 4 / 10)
    assert score("rouge1", {}, ["добрый день"], [["добрый вечер"]]).number() == 0.5
    assert score("rouge1", {}, ["买 iPhone 12"], [["买ｉＰｈｏｎｅ１２"]]).number() == pytest.approx(2 / 5)


def test_a_common_subsequence_is_one_and_is_the_longest():
    rng = random.Random(1)
    for _ in range(100):
        left, right = ([rng.choice("abcd") for _ in range(rng.randint(0, 12))] for _ in range(2))
        table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
        for i, a in enumerate(left, 1):
            for j, b in enumerate(right, 1):
                table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
        places = sorted(common_subsequence(left, right))
        assert len(set(places)) == len(places) == table[-1][-1]
        rest = iter(right)
        assert all(left[place] in rest for place in places)


def labels(shared_data, name):
    if name == "sms":
        with (shared_data / "classification/sms_spam.first4500.tsv").open(encoding="utf-8", errors="replace") as file:
            return [line.split("\t")[0] for line in file][1:]
    with (shared_data / "classification/banking77_train.csv").open(encoding="utf-8", newline="") as file:
        return [row["category"] for row in csv.DictReader(file)][:3000:2]


def guessed(right, seed=0, others=()):
    rng = random.Random(seed)
    known = sorted(set(right))
    return [label if rng.random() < 0.6 else rng.choice([*known, *others]) for label in right]


def random_labels(_shared_data, name):
    rng = random.Random(5)
    return [rng.choice("aaab c".replace(" ", name[-1])) for _ in range(300)]


@pytest.mark.parametrize("name", ["random1", "random2", "sms", "banking"])
def test_classification_is_scikit_learn_s(name, request):
    from sklearn import metrics as sk

    right = random_labels(None, name) if "random" in name else labels(request.getfixturevalue("shared_data"), name)
    assert len(right) > 200 and len(set(right)) > 1
    given = guessed(right)
    rows = [(label,) for label in right]
    padded = [f" {label}\n" for label in given]

    def found(metric, **options):
        return score(metric, options, padded, rows).number()

    assert found("accuracy") == sk.accuracy_score(right, given)
    assert found("balanced_accuracy") == pytest.approx(sk.balanced_accuracy_score(right, given), abs=1e-12)
    assert found("mcc") == pytest.approx(sk.matthews_corrcoef(right, given), abs=1e-12)
    library = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    for metric, function in library.items():
        for average in ("macro", "micro", "weighted"):
            assert found(metric, average=average) == pytest.approx(
                function(right, given, average=average, zero_division=0), abs=1e-12
            )
        one = sorted(set(right))[-1]
        assert found(metric, average="binary", positive=one) == pytest.approx(
            function([label == one for label in right], [label == one for label in given])
        )
    matrix = confusion(padded, rows, TextRules())
    assert list(matrix.labels) == sorted(set(right) | set(given))
    assert np.array_equal(np.array(matrix.counts), sk.confusion_matrix(right, given))


def test_answers_that_are_no_class():
    from sklearn import metrics as sk

    right = random_labels(None, "xc")
    given = guessed(right, others=["", "无", "I think it is a", "b."])
    rows = [(label,) for label in right]
    known = sorted(set(right))
    assert not set(given) <= set(known)
    for metric, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        for average in ("macro", "weighted"):
            wanted = function(right, given, labels=known, average=average, zero_division=0)
            assert score(metric, {"average": average}, given, rows).number() == pytest.approx(wanted)
        micro = score(metric, {"average": "micro"}, given, rows).number()
        assert micro == pytest.approx(sk.accuracy_score(right, given))
    one_other = [label if label in known else "other" for label in given]
    assert score("mcc", {}, given, rows).number() == pytest.approx(sk.matthews_corrcoef(right, one_other))
    assert score("f1", {}, given, rows).totals[0].__len__() == 3 * len(known)  # the same for every model


def test_several_right_labels_and_the_one_that_counts():
    found = score("accuracy", {"ignore_case": True}, ["B", "c"], [("a", "b"), ("a", "b")])
    assert found.values == (1.0, 0.0)
    right = [("ham",), ("spam",), ("ham",)]
    assert score("f1", {"average": "binary", "positive": "spam"}, ["spam", "spam", "ham"], right).number() == 2 / 3
    with pytest.raises(DataError, match="no row has the label 'spm'") as caught:
        check("f1", {"average": "binary", "positive": "spm"}, right)
    assert caught.value.fix == "did you mean 'spam'?"
    check("f1", {"average": "binary", "positive": "spam"}, right[:1])  # rows may be checked one by one


@pytest.mark.parametrize(("name", "unit"), [("wer", "words"), ("cer", "characters")])
def test_error_rates(name, unit):
    import jiwer

    process = {"words": jiwer.wer, "characters": jiwer.cer}[unit]
    for write in (text, chinese):
        rng = random.Random(3)
        right = [write(rng).replace("\n", " ").strip() or "x" for _ in range(60)]
        given = ["" if rng.random() < 0.1 else changed(rng, line) + " more" for line in right]
        found = score(name, {}, given, [(line,) for line in right])
        assert found.number() == pytest.approx(process([r.strip() for r in right], [g.strip() for g in given]))
        assert found.values[0] == pytest.approx(process(right[0], given[0].strip()))


def test_error_rates_by_hand():
    assert score("wer", {}, ["a c"], [("a b d",)]).number() == pytest.approx(2 / 3)
    assert score("wer", {}, ["a c"], [("a b d", "a c e")]).number() == pytest.approx(1 / 3)
    assert score("cer", {}, ["今天天好"], [("今天天气好",)]).number() == pytest.approx(1 / 5)
    assert score("wer", {"ignore_case": True}, ["A"], [("a",)]).number() == 0
    silent = score("wer", {}, ["a b", "c"], [("",), ("c",)])
    assert silent.totals == ((2.0, 0.0), (0.0, 1.0)) and silent.number() == 2
    assert math.isnan(silent.values[0])


def test_calibration_error():
    rng = np.random.default_rng(0)
    chance = np.concatenate([rng.uniform(0, 1, 500), [0.0, 1.0, 0.2, 0.4, 1 / 15]])
    right = rng.uniform(0, 1, len(chance)) < chance**2
    given = ["yes" if flag else "no" for flag in right]
    rows = [("yes",)] * len(chance)
    for bins in (1, 5, 15):
        wanted = 0.0
        for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:]):
            inside = (chance > low) & (chance <= high) | (low == 0) & (chance == 0)
            if inside.any():
                wanted += inside.mean() * abs(chance[inside].mean() - right[inside].mean())
        assert score("ece", {"bins": bins}, given, rows, probabilities=chance).number() == pytest.approx(wanted)
    assert score("ece", {}, ["a", "b"], [("a",), ("a",)], probabilities=[0.9, 0.6]).number() == pytest.approx(0.35)


def test_calibration_error_needs_probabilities():
    with pytest.raises(UserError, match="needs the probability"):
        score("ece", {}, ["a"], [("a",)])
    with pytest.raises(DataError, match="not within 0 and 1") as caught:
        score("ece", {}, ["a", "a"], [("a",)] * 2, probabilities=[0.5, math.nan])
    assert caught.value.problems[0].where == "evaluation row 2"
