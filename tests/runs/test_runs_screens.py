import io
import json
import math
import re
import sys

import pytest
from rich.console import Console

from tunekit.core.errors import Problem, UserError
from tunekit.runs import screen as screens
from tunekit.runs.screen import JsonScreen, PlainScreen, QuietScreen, make_screen, show_error
from tunekit.runs.screen_rich import RichScreen

VALUES = {
    "step": 10,
    "total_steps": 40,
    "loss": 1.5,
    "learning_rate": 1e-4,
    "grad_norm": 0.9,
    "tokens_per_second": 12345.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def session(screen):
    screen.say("hello")
    with screen.step("reading", 3, "rows") as step:
        step.advance(2)
        step.advance()
        step.note("two files")
    screen.warn("careful")
    with screen.step("training", 40, "steps"):
        screen.metrics(VALUES)
        screen.metrics({"step": 11, "loss": math.nan, "grad_norm": math.inf})


def failing_session(screen):
    def interrupted():
        with screen.step("training", 40, "steps") as step:
            step.advance(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_plain_is_one_line_an_event():
    out = io.StringIO()
    session(PlainScreen(out))
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert lines[:2] == ["hello", "reading 3 rows ..."]
    assert re.fullmatch(r"done: reading 3 rows  0\.\d s  two files", lines[2])
    assert lines[3:6] == [
        "warning: careful",
        "training 40 steps ...",
        "step 10/40  loss 1.500  lr 1.0e-04  grad 0.9000  12.3k tok/s",
    ]
    assert lines[6] == "step 11  loss nan  grad inf"  # a broken value shows at once


def test_shares_are_shown_in_per_cent():
    out = io.StringIO()
    values = {"padding_share": 0.0, "trained_share": 0.2512, "mfu": 0.4063, "trained_tokens_per_second": 5.0}
    screen = PlainScreen(out)
    for step in (4, 5):
        screen.metrics({"step": step, "loss": 1.0, "memory_gb": 2.04, "eval_loss": 2.0} | values)
    first, *lines = out.getvalue().splitlines()
    assert first.startswith("MFU: model FLOPs utilization, ")  # once, where it is first met
    rest = "loss 1.000  eval loss 2.000  MFU 40.6 %  trained tokens 25.1 %  padding 0.0 %  2.0 GB"
    assert lines == [f"step 4  {rest}", f"step 5  {rest}"]


def test_a_terminal_spells_out_mfu_once():
    out = Terminal()
    screen = RichScreen(console=Console(file=out, force_terminal=True, width=120, color_system=None))
    with screen.step("training", 40, "steps"):
        for step in (1, 2):
            screen.metrics({"step": step, "loss": 1.0, "mfu": 0.4})
    assert out.getvalue().count("model FLOPs utilization") == 1


def test_plain_holds_back_lines_that_come_too_fast_but_never_the_last():
    out = io.StringIO()
    screen = PlainScreen(out)
    with screen.step("training", 100, "steps"):
        for step in range(1, 101):
            screen.metrics({"step": step, "loss": 1.0})
        screen.metrics({"step": 100, "eval_loss": 0.5})
        screen.metrics({"step": 101, "loss": 0.25})
    steps = [line for line in out.getvalue().splitlines() if line.startswith("step")]
    told = ["step 1  loss 1.000", "step 100  loss 1.000", "step 100  eval loss 0.5000", "step 101  loss 0.2500"]
    assert steps == told  # the loss of a step whose evaluation follows is not lost


def test_plain_tells_a_long_step(monkeypatch):
    monkeypatch.setattr(screens, "_EVERY_PROGRESS", 0.0)
    out = io.StringIO()
    with PlainScreen(out).step("reading", 10, "rows") as step:
        step.advance(4)
    assert "reading 4/10 rows" in out.getvalue()


def test_json_is_valid_and_never_hides_a_broken_value():
    out = io.StringIO()
    session(JsonScreen(out))
    events = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "message", "step_started", "note", "step_ended", "warning", "step_started", "metrics", "metrics", "step_ended",
    ]  # fmt: skip
    assert events[3]["done"] == 3 and events[3]["finished"] is True
    assert events[6]["loss"] == 1.5
    assert events[7] == {"event": "metrics", "step": 11, "loss": "nan", "grad_norm": "inf"}


@pytest.mark.parametrize("width", [40, 80, 120])
def test_rich_leaves_one_line_for_every_step_and_fits(width):
    out = Terminal()
    session(RichScreen(console=Console(file=out, force_terminal=True, width=width, color_system=None)))
    shown = out.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"✓ reading 3 rows  0\.\d s  two files", plain)
    assert "✓ training" in plain and "! careful" in plain
    assert "nan" in plain and "inf" in plain
    assert all(len(line) <= width for part in plain.split("\n") for line in part.split("\r"))
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor was hidden and is back


def test_rich_gives_the_terminal_back_when_interrupted():
    out, before = Terminal(), (sys.stdout, sys.stderr)
    failing_session(RichScreen(console=Console(file=out, force_terminal=True, width=80, color_system=None)))
    assert "✗ training, ended after 7 steps" in out.getvalue()
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")
    assert (sys.stdout, sys.stderr) == before


def test_plain_and_json_tell_an_interrupted_step():
    plain, events = io.StringIO(), io.StringIO()
    failing_session(PlainScreen(plain))
    failing_session(JsonScreen(events))
    assert "not finished: training, ended after 7 steps" in plain.getvalue()
    assert json.loads(events.getvalue().splitlines()[-1])["finished"] is False


def test_a_step_that_fails_before_it_did_anything_counts_nothing():
    out = io.StringIO()
    with pytest.raises(UserError), PlainScreen(out).step("loading model"):
        raise UserError("no")
    assert re.fullmatch(r"not finished: loading model  0\.\d s", out.getvalue().splitlines()[-1])


def test_the_choice():
    assert isinstance(make_screen(quiet=False, json=False, stream=io.StringIO()), PlainScreen)
    assert isinstance(make_screen(quiet=False, json=False, stream=Terminal()), RichScreen)
    assert isinstance(make_screen(quiet=False, json=True, stream=Terminal()), JsonScreen)
    assert isinstance(make_screen(quiet=True, json=False), QuietScreen)
    with pytest.raises(UserError, match="exclude"):
        make_screen(quiet=True, json=True)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_screen(quiet=False, json=False, stream=Terminal()), PlainScreen)


def test_quiet_still_warns():
    out = io.StringIO()
    session(QuietScreen(out))
    assert out.getvalue() == "warning: careful\n"


def test_the_error_block():
    error = UserError(
        "unknown key 'epochz'", where="recipe.yaml:4:3", fix="did you mean 'epochs'?", problems=[Problem("b")]
    )
    out = io.StringIO()
    show_error(error, stream=out)
    assert out.getvalue() == (
        "error: cannot start\n  unknown key 'epochz'\n    at:  recipe.yaml:4:3\n    fix: did you mean 'epochs'?\n  b\n"
    )


def test_a_long_error_is_cut_with_a_count_but_whole_in_json():
    error = UserError("first", problems=[Problem(f"problem {n}") for n in range(30)])
    plain, events = io.StringIO(), io.StringIO()
    show_error(error, stream=plain)
    show_error(error, json=True, stream=events)
    assert plain.getvalue().count("problem ") == 19 and plain.getvalue().endswith("... and 11 further problems\n")
    event = json.loads(events.getvalue())
    assert (event["event"], event["exit_code"], len(event["problems"])) == ("error", 2, 31)


def test_the_error_block_of_a_terminal_shows_brackets_as_they_are():
    out = Terminal()
    show_error(UserError("bad [red]key[/red]", where="r.yaml:1", fix="[x]"), stream=out)
    assert "bad [red]key[/red]" in out.getvalue() and "[x]" in out.getvalue()


def test_a_step_without_a_total_takes_it_from_the_metrics():
    out = Terminal()
    screen = RichScreen(console=Console(file=out, force_terminal=True, width=80, color_system=None))
    with screen.step("training", unit="steps") as step:
        screen.metrics({"step": 10, "total_steps": 40, "loss": 1.0})
        step.advance(10)
        assert step.total == 40
