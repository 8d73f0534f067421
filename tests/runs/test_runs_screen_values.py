"""What of the values of preference and RL runs stands on a screen."""

import io
import json
import re

import pytest
from rewards_for_tests import JUDGED, PAIRS, RL, RL_HELD_OUT
from rich.console import Console

from tunekit.runs.screen import JsonScreen, PlainScreen
from tunekit.runs.screen_rich import RichScreen

TRAINING = {
    "step": 12, "total_steps": 200, "epoch": 0.1, "loss": 0.0123, "learning_rate": 1e-4, "grad_norm": 0.9,
    "tokens_per_second": 1234.0, "trained_tokens_per_second": 600.0, "mfu": 0.4, "padding_share": 0.1,
    "trained_share": 0.5, "memory_gb": 12.5, "seconds": 9.0,
}  # fmt: skip
LINES = {
    "rl": (RL, "step 12/200  loss 0.01230  reward 0.5000  KL 2.500  answer 87 tokens  1.23k tok/s"),
    "pairs": (PAIRS, "step 12/200  loss 0.01230  reward accuracy 75.0 %  reward margin 1.500  1.23k tok/s"),
    "judged": (JUDGED, "step 12/200  loss 0.01230  reward margin 1.750  KL -4.000  1.23k tok/s"),
    "judged, only good ones": ({"reward_good": 1.0, "kl": 0.5}, "step 12/200  loss 0.01230  KL 0.5000  1.23k tok/s"),
}


def plain(*lines):
    out = io.StringIO()
    screen = PlainScreen(out)
    for values in lines:
        screen.metrics(values)
        screen._release()
    return out.getvalue().splitlines()


@pytest.mark.parametrize("name", LINES)
def test_a_line_has_the_few_values_that_tell_how_it_goes(name):
    values, line = LINES[name]
    assert plain(TRAINING | values) == [line]  # and MFU, which does not show, is not spelled out
    assert len(line) < 90


def test_a_line_of_held_out_values():
    held_out = {f"eval_{key}": value for key, value in RL_HELD_OUT.items()}
    line = "step 12  eval loss -0.6250  eval reward 0.6250  eval answer 64 tokens"
    assert plain({"step": 12, "epoch": 0.1, "eval_loss": -0.625, "seconds": 3.0} | held_out) == [line]


def test_a_hidden_value_that_is_broken_shows():
    values = TRAINING | RL | {"entropy": float("nan"), "reward/format": float("inf"), "reward": float("-inf")}
    [line] = plain(values)
    assert line.endswith("reward -inf  KL 2.500  answer 87 tokens  1.23k tok/s  format inf  entropy nan")


def test_other_methods_keep_their_line():
    [_, line] = plain(TRAINING | {"mean_token_accuracy": 0.5})
    assert "lr 1.0e-04  grad 0.9000" in line and line.endswith("12.5 GB  mean token accuracy 0.5000")


def test_json_keeps_all():
    out = io.StringIO()
    JsonScreen(out).metrics(TRAINING | RL)
    assert json.loads(out.getvalue()) == {"event": "metrics"} | TRAINING | RL


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_shows_two_lines_with_the_rewards_curve(width):
    out = io.StringIO()
    screen = RichScreen(console=Console(file=out, force_terminal=True, width=width, color_system=None))
    with screen.step("training", 200, "steps"):
        for step in range(1, 9):
            screen.metrics(TRAINING | RL | {"step": step, "reward": step / 8, "loss": 0.5})
        shown = [line.plain for line in screen._display.metric_lines(width)]
    text = " ".join(shown)
    assert "reward 1.000 ▁▂▃▄▅▆▇█" in text and "loss 0.5000 ▄" not in text
    assert "KL 2.500" in text and "lr" not in text and "MFU" not in out.getvalue()
    assert all(len(line) <= width for line in shown) and len(shown) <= (4 if width == 40 else 2)
    assert re.search("▁▂", text)


def test_the_loss_has_the_curve_where_there_is_no_reward():
    screen = RichScreen(console=Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None))
    with screen.step("training", 200, "steps"):
        for step in range(1, 9):
            screen.metrics(TRAINING | PAIRS | {"step": step, "loss": step / 8})
        assert "loss 1.000 ▁▂▃▄▅▆▇█" in screen._display.metric_lines(100)[0].plain
