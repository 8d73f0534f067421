import html
import json
import math
import re
from html.parser import HTMLParser

import pytest
from runs_for_tests import EVALUATION, make_run, metric_lines

from tunekit.core.errors import UserError
from tunekit.runs.charts import Series, line_chart, smoothed, thinned, tick_words, ticks
from tunekit.runs.markup import data_island, tag
from tunekit.runs.report import write_report

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Reads a page: that every element is closed, what it points to, its texts and its charts' points."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.texts, self.tags, self.lines = [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        if name not in VOID:
            self.open.append(name)
        given = dict(attributes)
        self.links += [given[key] for key in ("src", "href", "action", "srcset", "data") if key in given]
        if name == "polyline":
            self.lines.append((given["class"], given["points"].split()))

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name, f"</{name}> closes nothing"

    def handle_data(self, text):
        self.texts.append(text)

    def points(self, kind):
        return sum(len(points) for look, points in self.lines if look == f"line-{kind}")


def page_of(folder):
    source = write_report(folder).read_text(encoding="utf-8")
    return source, Page(source)


def test_the_page_is_whole_and_loads_nothing(run):
    source, page = page_of(run)
    assert source.startswith("<!doctype html>")
    assert all(link == "data:," or link.startswith("#") for link in page.links), page.links
    assert "url(" not in source and "@import" not in source and "default-src &#x27;none&#x27;" in source
    style_and_script = "".join(re.findall(r"<(?:style|script)[^>]*>.*?</", source, re.DOTALL))
    assert "://" not in style_and_script
    assert not {"img", "iframe", "object", "embed", "form"} & set(page.tags)


def test_every_metric_is_drawn(run):
    _, page = page_of(run)
    trained = [line for line in metric_lines() if "loss" in line]
    assert page.points("faint") == page.points("train") == len(trained) == 244
    assert page.points("eval") == 4
    assert page.points("plain") == 4 * len(trained)  # learning rate, gradient norm, tokens per second, MFU


def test_texts_are_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=http://x onerror='x'>"
    sample = {"prompt": evil, "tuned": evil, "reference": evil, "where": evil}
    task = EVALUATION["tasks"][0] | {"name": evil, "metric": evil}
    reasons = {"rows": 1, "kept": 0, "dropped": 1, "reasons": {evil: 1}}
    folder = make_run(
        tmp_path / "x",
        method=evil,
        evaluation={"tasks": [task], "samples": [sample]},
        data={"fingerprint": evil, "splits": {evil: reasons}},
        versions={evil: evil},
    )
    folder.recipe.write_text(f"# {evil}\n{evil}: {evil}\n")
    with folder.metrics.open("a") as file:
        file.write("".join(json.dumps({"step": step, evil: 1.0 * step}) + "\n" for step in (245, 246)))
    source, page = page_of(folder)
    assert "alert(1)</script>" not in source and "<img" not in source
    assert html.escape(evil) in source
    islands = re.findall(r'<script type="application/json">(.*?)</script>', source)
    assert len(islands) == 6 and all(json.loads(island)["series"] for island in islands)
    assert page.tags.count("script") == len(islands) + 1


def test_the_page_says_what_the_record_says(run):
    text = " ".join(page_of(run)[1].texts)
    for expected in (
        "It helped: exact match rose from 31.2 % to 58.4 %.",
        "27.2–35.4",
        "longer than 2,048 tokens",
        "AMD EPYC 7763",
        "NVIDIA H200, 139 GB",
        "38.6 % trained tokens, 1.2 % padding",
        "MFU (model FLOPs utilization) 40.6 % of 18.20 TFLOP/s",
        "micro_batch_size",
        "base right, tuned wrong (1)",
        "3,897",
    ):
        assert expected in text, expected


def test_broken_values_break_the_line_and_are_told(tmp_path):
    folder = make_run(tmp_path / "x")
    lines = [{"step": s, "loss": "nan" if s == 5 else 1.0 + s} for s in range(1, 10)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source, page = page_of(folder)
    assert [len(points) for look, points in page.lines if look == "line-train"] == [4, 4]
    assert "Not finite at 1 step, first at step 5." in " ".join(page.texts)
    assert source.count('class="broken"') == 1


def test_a_run_that_failed_early_still_has_a_report(tmp_path):
    error = {"title": "data refused", "problems": [{"what": "no rows", "where": "a.jsonl:1", "fix": "add rows"}]}
    gone = dict.fromkeys(("evaluation", "training", "data", "model", "git", "artefact"))
    folder = make_run(tmp_path / "x", status="failed", exit_code=3, error=error, **gone)
    for path in (folder.metrics, folder.plan, folder.recipe):
        path.unlink()
    text = " ".join(page_of(folder)[1].texts)
    assert "The run failed: no rows" in text and "What to do: add rows" in text


def test_rows_that_do_not_add_up_are_told(tmp_path):
    folder = make_run(tmp_path / "x", data={"fingerprint": "f", "splits": {"train": {"rows": 10, "kept": 8}}})
    assert "2 rows are not accounted for" in " ".join(page_of(folder)[1].texts)


def test_a_damaged_plan_is_one_clear_error(run):
    run.plan.write_text("{")
    with pytest.raises(UserError, match="damaged plan"):
        write_report(run)


def test_the_report_keeps_private_texts_out(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2-hunter2")
    run.recipe.write_text("x: hunter2-hunter2\ny: /home/bob/data\n")
    source, _ = page_of(run)
    assert "hunter2" not in source and "bob" not in source


def test_ticks_are_round_and_cover():
    assert ticks(0.0, 2.3, 6) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert ticks(1.0, 1.0)[0] < 1.0 < ticks(1.0, 1.0)[-1]
    assert tick_words([0.0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert tick_words([0.0, 1e-4, 2e-4]) == ["0", "1e-04", "2e-04"]
    assert tick_words([0, 10_000, 20_000]) == ["0", "10k", "20k"]


def test_thinning_keeps_extremes_and_broken_values():
    points = [(float(i), math.sin(i)) for i in range(10_000)]
    points[5000] = (5000.0, 99.0)
    points[7000] = (7000.0, math.nan)
    thin = thinned(points, 1000)
    assert len(thin) <= 1001 and (5000.0, 99.0) in thin and any(math.isnan(y) for _, y in thin)
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)


def test_smoothing_by_hand():
    assert smoothed([(1, 1.0), (2, 4.0), (3, 1.0), (4, math.nan), (5, 7.0)], 1)[:3] == [(1, 1.0), (2, 2.0), (3, 1.0)]
    assert smoothed([(1, 1.0), (2, math.nan), (3, 7.0)], 5)[2] == (3, 7.0)  # nothing crosses a broken value


def test_a_chart_of_one_point_or_none():
    assert "h0" in line_chart("x", [Series("x", "train", [(1, 1.0)])])
    assert "no finite values" in line_chart("x", [Series("x", "train", [(1, math.nan)])])


def test_markup_escapes():
    written = tag("p", "<b>", tag("i", "&"), cls='"x"', hidden=True, title=None)
    assert written == '<p class="&quot;x&quot;" hidden="">&lt;b&gt;<i>&amp;</i></p>'
    assert data_island("</script>") == '<script type="application/json">"\\u003c/script>"</script>'
