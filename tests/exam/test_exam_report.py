import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from exam_for_tests import RECORD, example_rows, make_exam, row, task, write_results

from tunekit.core.errors import UserError
from tunekit.exam.facts import RECORD as RECORD_FILE
from tunekit.exam.facts import RESULTS, ExamRecord, ModelFacts, Models, is_evaluation, load, save
from tunekit.exam.markdown import markdown, write_markdown
from tunekit.exam.report import write_report
from tunekit.exam.report_rows import changes_of, drawn, read_results, samples_of
from tunekit.exam.report_words import contamination_words, score_words, verdict_of
from tunekit.exam.show import plain_evaluation
from tunekit.runs.charts import interval_chart

VOID = {"meta", "link", "input", "br"}
EVIL = "</script><script>alert(1)</script><img src=http://x onerror='x'> | `[a](b)`"


class Page(HTMLParser):
    """Reads a page: that every element is closed, what it points to, its tables' cells, its data."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.tags, self.texts, self.ids = [], [], [], [], {}
        self.feed(source)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.tags.append((name, given))
        self.links += [given[key] for key in ("src", "href", "action", "srcset", "data") if key in given]
        if name not in VOID:
            self.open.append((name, given.get("id")))

    def handle_endtag(self, name):
        assert self.open and self.open.pop()[0] == name, f"</{name}> closes nothing"

    def handle_data(self, text):
        self.texts.append(text)
        for _, key in self.open:
            if key:
                self.ids.setdefault(key, []).append(text)

    def words(self, key):
        return " ".join(self.ids.get(key, []))

    def data(self):
        return json.loads("".join(self.ids["rows-data"]))


def page_of(folder):
    source = write_report(folder).read_text(encoding="utf-8")
    return source, Page(source)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = make_exam(tmp_path_factory.mktemp("exam") / "support-eval")
    return folder, *page_of(folder)


def test_the_page_is_whole_and_loads_nothing(example):
    _, source, page = example
    assert all(link == "data:," or link.startswith("#") for link in page.links), page.links
    assert "default-src &#x27;none&#x27;" in source and "url(" not in source and "@import" not in source
    style_and_script = "".join(re.findall(r"<(?:style|script)>.*?</", source, re.DOTALL))
    assert "://" not in style_and_script
    assert not {"img", "iframe", "object", "embed", "form"} & {name for name, _ in page.tags}


def test_the_page_says_what_the_record_says(example):
    _, _, page = example
    assert page.ids["verdict"][0] == (
        "A trade: better in support (exact match), support (rougeL), worse in wiki (perplexity)."
    )
    for part in ("+27.3 points (95 % CI +22.0 to +32.0, p < 0.001), paired over 400 rows", "12 prompts of support"):
        assert part in page.words("verdict")
    for part in ("31.2 %", "26.9–36.0", "rows not trained on", "25.8–35.0", "8.931", "use_stemmer: true", "p = 0.410"):
        assert part in page.words("results"), part
    assert "Of 5 comparisons, 0.25 would show a difference by chance" in page.words("results")
    assert "Forgotten: common sense, accuracy from 61.2 % to 54.7 %." in page.words("forgetting")
    assert "10 of 400 rows (2.5 %) were found in data/train.jsonl: 4 whole, 6 by a run of 13 words." in page.words(
        "contamination"
    )
    assert "data/train.jsonl:70" in page.words("contamination")
    for part in ("ab12", "Qwen/Qwen3-0.6B", "5.23.0", "9f2c", "41.2 s"):
        assert part in page.words("how"), part


def test_every_estimate_is_drawn(example):
    _, _, page = example
    looks = [given.get("class") for name, given in page.tags if name == "path"]
    for look in ("base", "tuned"):
        assert looks.count(f"whisker line-{look}") == looks.count(f"dot line-{look}") == 5
    assert "support, base: 31.2 %, interval 26.9 % to 36.0 %" in page.words("intervals")


def test_rows_are_put_together_and_marked(tmp_path):
    rows = [
        row("support", "exact_match", "a:1", 0.0, 1.0),
        row("support", "rougeL", "a:1", 0.5, 0.25),
        row("support", "exact_match", "a:2", 1.0, 1.0, contaminated=True),
        row("support", "rougeL", "a:2", 0.5, 0.5 + 1e-12),
        row("support", "exact_match", "a:2", 1.0, 0.0),  # asked twice
        row("wiki", "perplexity", "a:1", 10.0, 9.0, base_text=None, tuned_text=None),
    ]
    _, page = page_of(make_exam(tmp_path / "x", rows))
    data = page.data()
    assert [one["name"] for one in data["tasks"]] == ["support", "topics", "wiki", "common sense"]
    assert data["tasks"][2]["metrics"] == ["nats a token"]
    answer = ["Passwords are important.", "Open Settings."]
    prompt = ["How do I reset my password?", "Open Settings."]
    assert data["rows"] == [
        [0, "a:1", *prompt, *answer, [["0", "1", "right", "won"], ["0.5000", "0.2500", "", "lost"]], 0],
        [0, "a:2", *prompt, *answer, [["1", "1", "right", "same"], ["0.5000", "0.5000", "", "same"]], 1],
        [0, "a:2", *prompt, *answer, [["1", "0", "wrong", "lost"], None], 0],
        [2, "a:1", *prompt, None, None, [["10", "9", "", "won"]], 0],  # fewer nats are better
    ]
    links = [given["href"] for name, given in page.tags if name == "a" and "show=" in given["href"]]
    assert links[:2] == ["#task=0%2F0&show=won", "#task=0%2F0&show=lost"] and links[-2] == "#task=2&show=won"
    assert "1 won · 1 lost" in re.sub(r" +", " ", page.words("results"))


def test_scores_beyond_one_are_neither_right_nor_wrong(tmp_path):
    rating = task("judge", "rating", 2, None, (3.0, 1.0, 5.0), None, None)
    record = ExamRecord.model_validate(RECORD | {"tasks": [rating]})
    rows = [row("judge", "rating", "a:1", None, 1.0), row("judge", "rating", "a:2", None, 5.0)]
    assert [sample.scores["rating"].mark for sample in samples_of(rows, record.tasks)] == ["", ""]


def test_what_is_not_a_number_is_told_and_never_zero(tmp_path):
    nan = math.nan
    broken = task("support", "exact_match", 2, (nan, nan, nan), (0.5, nan, nan), (nan, nan, nan, nan), None)
    rows = [row("support", "exact_match", "a:1", nan, 1.0), row("support", "exact_match", "a:2", None, 0.0)]
    folder = make_exam(tmp_path / "x", rows, tasks=[broken], forgetting=None)
    stored = json.loads((folder / RECORD_FILE).read_text())["tasks"][0]
    assert stored["base"] == {"value": "nan", "low": "nan", "high": "nan"} and stored["difference"]["p_value"] == "nan"
    read = load(folder).tasks[0]
    assert math.isnan(read.base.value) and math.isnan(read.difference.p_value) and read.clean is None
    _, page = page_of(folder)
    assert page.ids["results"].count("not a number") == 2 and "nan" not in page.words("results")
    assert "50.0 %" in page.words("results") and "not known" in page.words("results")
    assert [one[6] for one in page.data()["rows"]] == [[["not a number", "1", "right", ""]], [["–", "0", "wrong", ""]]]
    shown = plain_evaluation(load(folder), folder)
    assert shown.count("not a number") == 2 and "nan" not in shown
    assert "nan" not in markdown(load(folder))
    assert "No verdict can be given" in page.words("verdict")


def test_rows_of_a_corpus_metric_have_no_number_of_their_own():
    bleu = task("support", "bleu", 1, None, (31.0, 29.0, 33.0), None, None, statistic="corpus")
    record = ExamRecord.model_validate(RECORD | {"tasks": [bleu]})
    (sample,) = samples_of([row("support", "bleu", "a:1", None, math.nan)], record.tasks)
    assert score_words(sample.scores["bleu"].tuned) == "–"


def test_a_number_too_exact_for_the_screen_is_kept_in_full(tmp_path):
    value = 0.1 + 0.2
    one = task("support", "exact_match", 2, None, (value, 0.0, 1.0), None, None)
    assert load(make_exam(tmp_path / "x", tasks=[one])).tasks[0].tuned.value == value


def test_hostile_texts_are_escaped(tmp_path):
    evil = task(EVIL, EVIL, 2, (0.1, 0.0, 0.2), (0.5, 0.4, 0.6), (0.4, 0.3, 0.5, 0.01), "better", note=EVIL)
    leaks = {"checked": 2, "exact": 1, "ngram": 0, "against": EVIL, "rows": [{"where": EVIL, "matched": EVIL}]}
    texts = dict.fromkeys(("prompt", "base_text", "tuned_text"), EVIL)
    rows = [row(EVIL, EVIL, f"{EVIL}{n}", 0.0, 1.0, reference=f"{EVIL[:30]}{n % 2}", **texts) for n in range(6)]
    for one in rows:
        one["tuned_text"] = one["reference"]  # so that there is a confusion matrix
    folder = make_exam(
        tmp_path / "x",
        rows,
        tasks=[evil],
        forgetting=[evil],
        contamination=leaks,
        warnings=[EVIL],
        models={"tuned": {"name": EVIL, "kind": EVIL}, "baseline": {"name": EVIL}},
        versions={EVIL: EVIL},
        engine=EVIL,
    )
    source, page = page_of(folder)
    assert "alert(1)</script>" not in source and "<img" not in source
    assert html.escape(EVIL) in source and page.words("confusion")
    assert [name for name, _ in page.tags].count("script") == 2
    assert len(page.data()["rows"]) == 6 and page.data()["rows"][0][2] == EVIL
    text = write_markdown(folder).read_text()
    assert not re.search(r"(?<!\\)[<`\[]", text)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in text.splitlines() if line.startswith("|"))


def test_secrets_and_foreign_paths_are_kept_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2-hunter2")
    models = {"tuned": {"name": "/srv/private/place/model"}, "baseline": None}
    rows = [
        row("support", "exact_match", "/home/bob/eval.jsonl:1", 0.0, 1.0,
            prompt="my hunter2-hunter2 \n\0\n and /etc/x/y")
    ]  # fmt: skip
    folder = make_exam(tmp_path / "x", rows, models=models)
    source, page = page_of(folder)
    assert load(folder).models.tuned.name == "…/model"
    assert "hunter2" not in source and "bob" not in source
    assert page.data()["rows"][0][1:5] == [
        "~/eval.jsonl:1", "my <HF_TOKEN> \n\0\n and /etc/x/y", "Open Settings.", "Passwords are important."
    ]  # fmt: skip


def test_confusion_is_counted(tmp_path):
    said = ["yes"] * 5 + ["no"] * 2 + ["perhaps"]
    rows = [
        row("topics", "accuracy", f"a:{n}", None, 1.0, reference="yes" if n < 6 else "no", base_text=None,
            tuned_text=one)
        for n, one in enumerate(said)
    ]  # fmt: skip
    _, page = page_of(make_exam(tmp_path / "x", rows))
    words = page.ids["confusion"]
    # right no: said no 1, yes 0, other 1; right yes: no 1, yes 5, other 0
    assert words[words.index("Tuned") :] == [
        "Tuned", "no", "yes", "(other)", "no", "1", "0", "1", "yes", "1", "5", "0",
        "Rows are the right labels, columns the answers.",
    ]  # fmt: skip
    _, page = page_of(make_exam(tmp_path / "y", [row("support", "exact_match", f"a:{n}", 0.0, 1.0) for n in range(9)]))
    assert not page.words("confusion")  # one label is no classification


def test_long_texts_are_cut_in_the_middle_and_many_rows_drawn(tmp_path):
    rows = [row("support", "exact_match", "a:1", 0.0, 1.0, prompt="a" * 5000 + "question?")]
    _, page = page_of(make_exam(tmp_path / "x", rows))
    shown = page.data()["rows"][0][2]
    assert shown.startswith("a" * 800 + "\n[… 1,009 characters …]\n") and shown.endswith("question?")
    samples = samples_of([row("t", "m", f"a:{n}", 0.0, 1.0) for n in range(50)], ())
    few = drawn(samples, 10)
    assert len(few) == 10 and [samples.index(one) for one in few] == sorted(samples.index(one) for one in few)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("task=0/0&show=lost", lambda one: one["task"] == "support" and one["exact_match"] == (1.0, 0.0)),
        ("show=leak", lambda one: one["leak"]),
        ("words=CUSTOMER%2012:", lambda one: "Customer 12:" in one["prompt"]),
    ],
)
def test_the_filter_in_a_browser(example, query, fits):
    folder, _, _ = example
    found = {}
    for one in example_rows():
        facts = found.setdefault((one["task"], one["where"]), {"task": one["task"], "prompt": one["prompt"]})
        facts |= {one["metric"]: (one["base_value"], one["tuned_value"]), "leak": one["contaminated"]}
    expected = sum(map(fits, found.values()))
    address = (folder / "report.html").as_uri() + f"#{query}"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"{expected:,} of 1,200 rows, page 1 of {max(1, math.ceil(expected / 25))}<" in dom
    body = re.search(r'<tbody id="rows-body">(.*?)</tbody>', dom, re.DOTALL)[1]
    assert body.count("<tr") == min(25, expected)


def test_the_first_page_is_there_without_a_script(example):
    _, _, page = example
    assert page.words("rows-body").count("data/eval.jsonl:") == 25


SHOWN = """\
A trade: better in support (exact match), worse in wiki (perplexity).

task             n         base        tuned              change  verdict
────────────────────────────────────────────────────────────────────────────────
support        400       31.2 %       58.5 %               +27.3  better
exact match           26.9–36.0    53.6–63.2      +22.0 to +32.0  p < 0.001
rows not       390       30.2 %       56.9 %               +26.7  better
trained on            25.8–35.0    51.9–61.7      +21.0 to +32.0  p < 0.001
topics         400       74.2 %       76.0 %                +1.8  no detectable
accuracy              69.7–78.3    71.6–79.9        -2.0 to +5.5  difference
                                                                  p = 0.410
wiki           400        8.214        8.931             +0.7170  worse
perplexity          7.610–8.900  8.200–9.700  +0.5000 to +0.9500  p < 0.001

Small figures are 95 % confidence intervals. Changes are paired: both models
answered the same rows.

10 of 400 rows (2.5 %) were found in data/train.jsonl: 4 whole, 6 by a run of 13
words.
warning: 12 prompts of support were cut to the model's 2,048 tokens

model     runs/support-bot/model
baseline  Qwen/Qwen3-0.6B
time      1 min 10 s
next      tunekit runs compare A B
"""


def test_the_terminal_at_80_columns(tmp_path):
    record = ExamRecord.model_validate(
        RECORD | {"tasks": [one for one in RECORD["tasks"] if one["metric"] != "rougeL"], "forgetting": None}
    )
    assert plain_evaluation(record, tmp_path, ["tunekit runs compare A B"]) == SHOWN


@pytest.mark.parametrize("width", [30, 50, 70, 80, 100, 140])
def test_no_number_is_broken_at_any_width(tmp_path, width):
    long = task("mmlu_abstract_algebra_of_many_words", "exact_match", 14042, (12345.6, 11111.1, 13333.3),
                (23456.7, 21111.1, 25555.5), (11111.1, 9999.9, 12222.2, 0.04), "better")  # fmt: skip
    record = ExamRecord.model_validate(RECORD | {"tasks": [*RECORD["tasks"], long], "warnings": []})
    shown = plain_evaluation(record, tmp_path, width=width)
    assert all(len(line) <= width for line in shown.splitlines())
    numbers = ("14,042", "12,346", "11,111", "+11,111", "23,457", "26.9–36.0", "+0.7170", "8.200–9.700")
    assert all(number in shown for number in numbers), shown


def test_where_things_lie_is_told_when_they_are_there(example):
    folder, _, _ = example
    shown = plain_evaluation(load(folder), folder, width=200)
    assert f"report    {folder / 'report.html'}" in shown and "report.md" not in shown


@pytest.mark.parametrize(
    ("verdicts", "tone", "title"),
    [
        (["better"], "good", "Better: t0, exact match from 31.2 % to 58.5 %."),
        (["better", "better", None], "good",
         "Better: t0, exact match from 31.2 % to 58.5 %. Better in 1 further task too."),
        (["worse", "no detectable difference"], "bad",
         "Worse: t0, exact match from 31.2 % to 58.5 %. No detectable difference in 1 other."),
        (["no detectable difference"], "neutral", "No detectable difference: t0, exact match from 31.2 % to 58.5 %."),
        (["no detectable difference"] * 2, "neutral", "No detectable difference in any of 2 comparisons."),
        (["better", "worse"], "neutral", "A trade: better in t0 (exact match), worse in t1 (exact match)."),
        ([None], "neutral", "t0: exact match 58.5 %."),
        ([], "neutral", "No task was evaluated."),
    ],
)  # fmt: skip
def test_verdict_sentences(verdicts, tone, title):
    tasks = [RECORD["tasks"][0] | {"name": f"t{at}", "verdict": one} for at, one in enumerate(verdicts)]
    words = verdict_of(ExamRecord.model_validate(RECORD | {"tasks": tasks}))
    assert (words.tone, words.title) == (tone, title)


def test_contamination_in_words():
    none = ExamRecord.model_validate(
        RECORD | {"contamination": {"checked": 40, "exact": 0, "ngram": 0, "against": "train.jsonl"}}
    ).contamination
    assert contamination_words(none) == "None of 40 rows was found in train.jsonl."


def test_changes_are_counted(example):
    folder, _, _ = example
    changes = changes_of(samples_of(read_results(folder), load(folder).everything))
    expected = [one for one in example_rows() if one["metric"] == "exact_match"]
    won = sum(one["tuned_value"] > one["base_value"] for one in expected)
    assert changes["support", "exact_match"]["won"] == won > 0
    assert sum(changes["support", "exact_match"].values()) == 400


def test_a_record_is_read_back_as_it_was(example):
    folder, _, _ = example
    assert load(folder) == ExamRecord.model_validate(RECORD)
    assert is_evaluation(folder) and not is_evaluation(folder / "nowhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "damaged record: the whole file"),
        ('{"schema_version": 1, "method": "sft"}', "not the record of an evaluation"),
        ('{"kind": "evaluation", "schema_version": 9, "tunekit": "7.0"}', "written by tunekit 7.0, which is newer"),
        ('{"kind": "evaluation", "created": ""}', "damaged record: models: field required"),
        (
            '{"kind": "evaluation", "created": "", "models": {"tuned": {"name": "a"}}, "tasks": [{"name": "a",'
            ' "metric": "m", "higher_is_better": true, "n": 1, "tuned": {"value": null, "low": 0, "high": 0}}]}',
            "damaged record: tasks.0.tuned.value",
        ),
    ],
)
def test_damaged_records_are_one_clear_error(tmp_path, text, says):
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        load(tmp_path)


def test_what_is_missing_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="not an evaluation folder"):
        load(tmp_path)
    save(tmp_path, ExamRecord(created="", models=Models(tuned=ModelFacts(name="a"))))
    with pytest.raises(UserError, match=f"there is no {RESULTS}"):
        write_report(tmp_path)
    (tmp_path / RESULTS).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged results"):
        write_report(tmp_path)
    write_results(tmp_path, [{"task": "a", "metric": "b"}])
    with pytest.raises(UserError, match="no column where, prompt"):
        write_report(tmp_path)


def test_intervals_without_bounds_have_no_whisker():
    rows = [("base", 0.5, math.nan, math.nan), ("tuned", math.nan, 0.0, 1.0)]
    drawn_rows = interval_chart("x", [("a", rows), ("b", [("tuned", 0.7, 0.6, 0.8)])], str)
    assert drawn_rows.count('class="whisker') == 1 and drawn_rows.count('class="dot') == 2
    assert "no finite values" in interval_chart("x", [("a", [("tuned", math.nan, 0.0, 1.0)])], str)
