"""The page of smaller models: the record's figures, texts that stay texts, and no secrets."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tunekit.compress.made import Made
from tunekit.compress.report import REPORT, frontier, page, write_report
from tunekit.core.errors import MachineError
from tunekit.runs.scrub import Scrubber

MIB = 1 << 20
SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


def record(kind="nf4", size=30, kl=0.0123, **more):
    return {
        "tunekit": "0.1", "source": {"model": "support"}, "kind": kind, "options": {"skip": [], "double_quant": True},
        "rows": "the run's held-out rows", "prompts": ["Where is my order?", "Thanks!"], "calibration": None,
        "seconds": 12.34, "making_memory": 700 * MIB, "expected_size": size * MIB + 77, "libraries": {"torch": "2"},
        "perplexity": (8.75, 8.25, 9.5), "source_perplexity": (8.5, 8.0, 9.25), "increase": (0.0294, 0.011, 0.048),
        "mean_kl": kl, "top1_agreement": 0.937, "positions": 4321, "rows_measured": 96, "same_texts": 1,
        "texts": [["It left today.", "It left yesterday."], ["Welcome.", "Welcome."]],
        "size": size * MIB, "source_size": 120 * MIB,
        "cost": {"load_seconds": [1.25, 0.75], "peak_memory": [900 * MIB, 600 * MIB], "prompt_speed": [1234.0, 2345.0],
                 "answer_speed": [45.0, 56.0]},
    } | more  # fmt: skip


class Words(HTMLParser):
    """Elements with their attributes, and what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.silent = [], "", 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.silent += tag in ("style", "script")

    def handle_endtag(self, tag):
        self.silent -= tag in ("style", "script")

    def handle_data(self, data):
        if not self.silent:
            self.text += f" {data} "


def scrubber(**environ):
    return Scrubber(Path("/srv/runs/small"), Path("/srv"), Path("/home/anna"), "workhorse", environ)


def shown(done, refused=(), **environ):
    return Words(page(done, list(refused), scrubber(**environ)))


def read(words):
    return " ".join(words.text.split())


def test_the_figures_are_those_of_the_record():
    calibration = {"source": "the run's training data", "rows": 256, "tokens": 70_123, "sha256": "0" * 64, "where": []}
    text = read(shown([("nf4", record()), ("gptq4", record("gptq4", 31, 0.0077, calibration=calibration))]))
    assert "support" in text
    for figure in (
        "120.0 MiB", "30.0 MiB", "÷ 4.00", "÷ 3.87",  # sizes
        "8.500 8.000 to 9.250", "8.750 8.250 to 9.500", "+2.9%", "+1.1% to +4.8%", "0.0123", "0.0077", "93.7", "1 of 2",
        "1.2 s", "0.8 s", "900.0 MiB", "600.0 MiB", "1,234 tok/s", "2,345 tok/s", "45 tok/s", "56 tok/s",
        "no text", "256 rows, 70,123 tokens of the run's training data", "double_quant: True", "12.3 s",
        "96", "4,321",
    ):  # fmt: skip
        assert figure in text, f"{figure} in {text}"


def test_a_prompt_is_no_markup():
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    given = record(prompts=[evil, "b"], texts=[[evil, f"</td>{evil}"], ["c", "d"]], source={"model": f"m{evil}"})
    raw = page([("nf4", given)], [("int8", f"why {evil}")], scrubber())
    words = Words(raw)
    assert "<script>alert" not in raw and "<img" not in raw
    assert words.text.count(evil) == 5 + raw.count("<title>"), "the title, too, is a text"
    assert not any(name.startswith("on") for _, attributes in words.elements for name in attributes)
    assert all(tag not in ("img", "iframe") for tag, _ in words.elements)


def points(words):
    """Name of each point, and its class."""
    return {attributes["title"].split(":")[0]: attributes["class"]
            for _, attributes in words.elements if "point" in attributes.get("class", "").split()}  # fmt: skip


def test_points_that_another_beats_in_both_are_faint():
    """int8 is larger than nf4 and no better; fp4 is as large as nf4 and worse; q4 is smaller, and worse: a trade."""
    done = [("nf4", record(size=30, kl=0.02)), ("int8", record(size=60, kl=0.02)), ("fp4", record(size=30, kl=0.05)),
            ("q4", record(size=20, kl=0.09)), ("bfloat16", record(size=120, kl=0.0))]  # fmt: skip
    assert points(shown(done)) == {
        "source": "point source", "nf4": "point", "int8": "point worse", "fp4": "point worse", "q4": "point",
        "bfloat16": "point",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "best"),
    [
        ([(1, 1)], [True]),
        ([(1, 1), (1, 1)], [True, True]),
        ([(1, 2), (2, 1)], [True, True]),
        ([(1, 2), (2, 2), (1, 3), (3, 1)], [True, False, False, True]),
    ],
)
def test_the_frontier_by_hand(given, best):
    assert frontier(given) == best


def places(words, kind):
    (style,) = [attributes["style"] for _, attributes in words.elements
                if attributes.get("title", "").startswith(f"{kind}:")]  # fmt: skip
    return tuple(float(value) for value in re.findall(r"([\d.]+)%", style))


def test_the_points_lie_where_their_figures_say():
    words = shown([("half", record(size=60, kl=0.02)), ("quarter", record(size=30, kl=0.04))])
    (half_x, half_y), (quarter_x, quarter_y) = places(words, "half"), places(words, "quarter")
    source_x, source_y = places(words, "source")
    assert half_x == pytest.approx(2 * quarter_x, abs=0.02) and source_x == pytest.approx(2 * half_x, abs=0.02)
    assert quarter_y == pytest.approx(2 * half_y, abs=0.02) and source_y == 0 and 0 < source_x <= 100


def test_secrets_and_places_are_taken_out_of_answers():
    said = f"my key is {SECRET}, in /home/anna/keys, or hunter2-hunter2"
    given = record(prompts=[said, "b"], texts=[[said, said], ["c", "d"]])
    text = read(shown([("nf4", given)], API_TOKEN="hunter2-hunter2"))
    assert SECRET not in text and "hunter2" not in text and "/home/anna" not in text
    assert text.count("my key is <secret>") == 3


def test_secrets_are_taken_out_of_reasons_and_names():
    """An error may hold a path of this machine, or an address with a login in it."""
    why = f"/home/anna/models/x: no access with {SECRET}"
    used = {"source": "/home/anna/rows.jsonl", "rows": 3, "tokens": 70, "sha256": "0" * 64, "where": []}
    text = read(shown([("nf4", record(calibration=used, rows="/home/anna/held.jsonl"))], [("int8", why)]))
    assert "int8 was refused" in text and "rows.jsonl" in text
    assert SECRET not in text and "/home/anna" not in text


def test_the_page_fetches_nothing(tmp_path):
    """Neither when it is opened, nor by the policy that it sets itself."""
    words = shown([("nf4", record())])
    addresses = [a[key] for _, a in words.elements for key in ("src", "href") if key in a]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    policy = next(a["content"] for tag, a in words.elements if tag == "meta" and "default-src" in a.get("content", ""))
    assert "default-src 'none'" in policy


def test_it_is_written_beside_the_kinds(tmp_path):
    made = [Made("nf4", tmp_path / "nf4", record()), Made("int8", tmp_path / "int8", error=MachineError("no room"))]
    assert write_report(tmp_path, made) == tmp_path / REPORT
    text = read(Words((tmp_path / REPORT).read_text(encoding="utf-8")))
    assert "int8 was refused: no room" in text
    assert write_report(tmp_path / "none", made[1:]) is None and not (tmp_path / "none").exists()


def test_no_answers_were_asked_for():
    text = read(shown([("nf4", record(prompts=[], texts=[], same_texts=0))]))
    assert "No answers were asked for." in text
