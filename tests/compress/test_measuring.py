"""Figures of a smaller model: intervals over rows, and speeds that one slow pass does not decide."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from test_report import page, record, scrubber

from tunekit.compress.made import Made
from tunekit.compress.measuring import PASSES, SHORT, timed
from tunekit.compress.proof import Measured, figures
from tunekit.compress.show import console
from tunekit.compress.smaller_card import Said, write_card


def clock(*seconds):
    """One that shows so many seconds for each pass."""
    times = iter([time for taken in seconds for time in (0.0, taken)])
    return lambda: next(times)


@pytest.mark.parametrize(
    ("passes", "taken"),
    [((0.5, 0.1, 0.2), 0.2), ((0.1, 0.9, 0.3), 0.3), ((SHORT,), SHORT), ((7.0,), 7.0)],
)
def test_a_short_pass_is_done_thrice_and_the_median_counts(passes, taken):
    done = []
    assert len(passes) in (1, PASSES)
    assert timed(lambda: done.append(len(done)) or [done[-1]], clock(*passes)) == (taken, [0])
    assert len(done) == len(passes)


def both(kl, agreeing, positions):
    count = len(positions)
    values = {"losses": [1.0] * count, "tokens": [3] * count, "answers": [], "texts": [], "load_seconds": 1.0,
              "peak_memory": 1, "prompt_speed": 1.0, "answer_speed": 1.0}  # fmt: skip
    made = values | {"kl": kl, "agreeing": agreeing, "positions": positions}
    return figures(Measured("source", 10, values), Measured("made", 5, made))


def test_intervals_are_those_of_rows_drawn_again():
    """Against resampling written down here: percentiles of 4,000 draws of whole rows."""
    draw = np.random.default_rng(1)
    positions = draw.integers(20, 60, 200)
    rates = draw.beta(9, 1, 200)  # rows differ, so positions of a row are no independent draws
    agreeing, kl = draw.binomial(positions, rates), positions * draw.gamma(4, 0.01, 200)
    found = both(kl.tolist(), agreeing.tolist(), positions.tolist())
    rows = draw.integers(0, 200, (4000, 200))
    for key, sums in (("mean_kl", kl), ("top1_agreement", agreeing)):
        again = sums[rows].sum(1) / positions[rows].sum(1)
        low, high = found[f"{key}_interval"]
        assert low < found[key] < high
        assert high - low == pytest.approx(float(np.diff(np.quantile(again, [0.025, 0.975]))[0]), rel=0.1), key
    alone = np.sqrt(found["top1_agreement"] * (1 - found["top1_agreement"]) / positions.sum()) * 3.92
    low, high = found["top1_agreement_interval"]
    assert high - low > 1.5 * alone, "positions drawn one by one would be too sure"


def test_what_is_the_same_everywhere_has_no_width():
    found = both([0.0, 0.0, 0.0], [4, 5, 6], [4, 5, 6])
    assert found["mean_kl_interval"] == (0.0, 0.0) and found["top1_agreement_interval"] == (1.0, 1.0)


def test_table_page_and_card_show_them(tmp_path):
    from rich.console import Console

    given = record(mean_kl_interval=(0.0101, 0.0153), top1_agreement_interval=(0.9213, 0.9481))
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(console([Made("nf4", Path("x"), given)], Path("x"), None, "use"))
    raw = page([("nf4", given)], [], scrubber())
    write_card(tmp_path, given, Said("in fewer bits", ("nf4",)))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in (screen.export_text(), raw, card):
        assert "0.01010 to 0.01530" in text and "92.1 to 94.8 %" in text


def test_a_record_without_them_is_shown_as_before(tmp_path):
    raw = page([("nf4", record())], [], scrubber())
    assert "0.0123" in raw and "93.7 %" in raw and "None" not in raw
