"""The task `harness`: which tasks it takes and refuses, and how lm_eval's samples become rows of ours."""

import json
import logging
import math
import random
import sys

import pytest

pytest.importorskip("lm_eval")

from harness_for_tests import Told, local, measured, written

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.core.registry import TASKS
from tunekit.evaluate.harness_lm import Writer, language_model

QUESTIONS = [{"q": f"{a}+{b}=", "options": [str(a + b), "a"], "right": 0} for a, b in [(1, 2), (3, 3), (4, 5), (2, 9)]]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "right",
    "target_delimiter": "",
}


class Noted(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def task():
    return TASKS.load("harness")


@pytest.fixture
def run(task, tokenizer):
    def go(*tasks, answer=lambda before, after: 0.0, screen=None, positions=512, **settings):
        engine = Told(tokenizer, answer, positions)
        config = task.Config(tasks=tasks, **settings)
        return {
            (result.name, result.metric): result for result in task.run(engine, [], config, screen=screen or Silent())
        }

    return go


def of(result):
    return sum(result.values) / sum(result.weights)


# what is refused


def refused(task, kind, *tasks, **settings):
    with pytest.raises(kind) as found:
        task.check([], task.Config(tasks=tasks, **settings))
    return found.value


def test_an_unknown_name_is_told_with_the_nearest(task, monkeypatch):
    """The harness's own index is read, for names and for nothing else; here a part of it, for all takes seconds."""

    def few(root):
        return [file for name in ("piqa", "hellaswag") for file in sorted((root / name).glob("*.yaml"))]

    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex._iter_yaml_files", staticmethod(few))
    error = refused(task, UserError, "piqaa", "hellaswg", "zzzzzzzzzz")
    assert [problem.what for problem in error.problems] == [
        "unknown task 'piqaa'",
        "unknown task 'hellaswg'",
        "unknown task 'zzzzzzzzzz'",
    ]
    assert [problem.fix for problem in error.problems[:2]] == ["did you mean 'piqa'?", "did you mean 'hellaswag'?"]
    assert "lm_eval ls tasks" in error.problems[2].fix


def test_a_folder_of_tasks_is_taken_without_the_whole_index(task, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    one = local(tmp_path, "sums", {"test": QUESTIONS}, metric_list=measured("acc"), **CHOICE)
    (tmp_path / "sums.yaml").write_text(json.dumps(one))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [sums]\n")
    wanted = []

    def init(self, *args, _init=TaskManager.__init__, **options):
        wanted.append(options["include_defaults"])
        _init(self, *args, **options)

    monkeypatch.setattr(TaskManager, "__init__", init)
    task.check([], task.Config(tasks=["both"], include=tmp_path))
    task.check([], task.Config(tasks=[str(tmp_path / "sums.yaml")]))
    assert wanted == [False, False]


def test_data_on_the_hub_is_asked_for_in_words(task, monkeypatch):
    import datasets

    def offline(path, **options):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    away = {"task": "away", "dataset_path": "somebody/something", "test_split": "test", **CHOICE}
    error = refused(task, MachineError, away)
    assert "'away' needs a dataset that cannot be had: Couldn't reach 'somebody/something'" in str(error)
    assert "dataset_path: json" in error.fix
    monkeypatch.undo()
    error = refused(task, DataError, away | {"dataset_path": "json", "dataset_kwargs": {"data_files": "no/such.jsonl"}})
    assert "no/such.jsonl" in str(error) and "'away' cannot read" in str(error)


def test_code_is_run_only_when_it_is_allowed(task, tmp_path):
    """The fault first: the file's code does run when it is allowed."""
    ran = tmp_path / "ran"
    (tmp_path / "hidden.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef keep(docs): return docs\n")
    one = local(tmp_path, "sums", {"test": QUESTIONS}, metric_list=measured("acc"), **CHOICE)
    (tmp_path / "base").write_text("process_docs: !function hidden.keep\n")
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in one.items())
    (tmp_path / "sums.yaml").write_text("# !function in a comment is nothing\ninclude: base\n" + lines)
    for settings in ({"tasks": ["sums"], "include": tmp_path}, {"tasks": [str(tmp_path / "sums.yaml")]}):
        error = refused(task, UserError, *settings.pop("tasks"), **settings)
        assert error.problems[0].where == f"{tmp_path / 'base'}:1" and "hidden.keep" in str(error)
        assert "allow_code: true" in error.fix and not ran.exists()
    (tmp_path / "base").write_text("%TAG !f! !func\n---\nprocess_docs: !f!tion hidden.keep\n")
    refused(task, UserError, "sums", include=tmp_path)
    assert not ran.exists()
    (tmp_path / "base").write_text("process_docs: !function hidden.keep\n")
    task.check([], task.Config(tasks=["sums"], include=tmp_path, allow_code=True))
    assert ran.exists()


@pytest.mark.parametrize(
    ("metric", "words"),
    [({"metric": "exact_mach"}, "'exact_match'"), ({"metric": "acc", "hf_evaluate": True}, "allow")],
)
def test_metrics_that_would_be_programs_are_refused(metric, words, task, tmp_path):
    one = local(tmp_path, "sums", {"test": QUESTIONS}, metric_list=[metric | {"aggregation": "mean"}], **CHOICE)
    error = refused(task, UserError, one)
    assert f"no metric '{metric['metric']}'" in str(error) and words in error.fix
    assert "task sums" in refused(task, UserError, {"group": "g", "task": [one]}).problems[0].where


def test_task_files_that_are_none(task, tmp_path):
    (tmp_path / "bad.yaml").write_text("task: [sums\nmore: x\n")
    assert "bad.yaml" in str(refused(task, UserError, "sums", include=tmp_path))
    assert "there is no task file" in str(refused(task, UserError, "no/such.yaml"))
    assert "there is no folder" in str(refused(task, UserError, "sums", include=tmp_path / "none"))
    one = local(tmp_path, "sums", {"test": QUESTIONS}, metric_list=measured("acc"), **CHOICE)
    assert "UndefinedError" in str(refused(task, UserError, one | {"doc_to_text": "{{question}}"}))
    assert "named twice" in str(refused(task, UserError, one, one | {"doc_to_text": "{{q}}?"}))
    assert "writes" in str(refused(task, UserError, one | {"unsafe_code": True}))
    assert "takes no few-shot" in str(refused(task, UserError, one | {"num_fewshot": 0}, num_fewshot=2))
    assert "cannot show its examples" in str(refused(task, UserError, one, num_fewshot=9))
    said = {key: value for key, value in one.items() if key != "doc_to_choice"} | {"output_type": "generate_until"}
    said["metric_list"] = measured("exact_match")
    assert "not a string" in str(refused(task, UserError, said, num_fewshot=1))
    assert "into a task file" in refused(task, UserError, {"group": "g", "task": [one]}).fix
    with pytest.raises(ValueError):
        task.Config(tasks=[])


def test_without_the_package(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    error = refused(task, UserError, "piqa")
    assert error.fix == "pip install 'tunekit[harness]'"


# what becomes of samples


def test_choices_by_hand(run, tmp_path):
    """The engine takes the first option for 1+2 and 4+5; a longer option is better when its length counts."""
    rows = [*QUESTIONS, {"q": "7+7=", "options": ["0", "abcdefgh"], "right": 1}]
    one = local(tmp_path, "sums", {"test": rows}, metric_list=measured("acc", "acc_norm"), **CHOICE)
    scores = {"1+2=": (-1, -2), "3+3=": (-3, -1), "4+5=": (-1, -9), "2+9=": (-5, -1), "7+7=": (-1, -2)}

    def answer(before, after):
        return float(scores[before.removeprefix("<s>")][after in ("a", "abcdefgh")])

    found = run(one, answer=answer)
    assert found["sums", "acc"].values == (1, 0, 1, 0, 0)
    assert found["sums", "acc_norm"].values == (1, 0, 1, 0, 1)
    assert of(found["sums", "acc"]) == 0.4 and of(found["sums", "acc_norm"]) == 0.6
    result = found["sums", "acc"]
    assert result.weights == (1.0,) * 5 and result.statistic == "mean" and result.higher_is_better and not result.texts
    assert [item.reference for item in result.items] == ["3", "6", "9", "11", "abcdefgh"]
    assert (result.items[3].where, result.items[3].prompt_text) == ("sums, document 3", "2+9=")
    limited = run(one, answer=answer, limit=2)["sums", "acc"]
    assert limited.values == (1, 0)


def test_perplexities_by_hand(run, tmp_path):
    """Two texts of 2 and 3 words (5 and 9 bytes) at -2 and -7 nats."""
    rows = [{"text": "a bcd"}, {"text": "abc de fg"}]
    metrics = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    one = local(
        tmp_path, "texts", {"test": rows}, output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{text}}", metric_list=metrics,
    )  # fmt: skip
    found = run(one, answer=lambda before, after: -2.0 if after == "a bcd" else -7.0)
    assert not any(result.higher_is_better for result in found.values())
    assert {result.statistic for result in found.values()} == {"perplexity", "mean"}
    assert math.exp(of(found["texts", "word_perplexity"])) == math.exp(9 / 5)
    assert math.exp(of(found["texts", "byte_perplexity"])) == math.exp(9 / 14)
    assert of(found["texts", "bits_per_byte"]) == pytest.approx(9 / 14 / math.log(2), rel=1e-15)
    assert found["texts", "word_perplexity"].weights == (2, 3)
    last = local(
        tmp_path, "last", {"test": rows}, output_type="loglikelihood", doc_to_text="{{text[:1]}}",
        doc_to_target="{{text[1:]}}", metric_list=[{"metric": "perplexity"}, {"metric": "acc"}],
    )  # fmt: skip
    found = run(last, answer=lambda before, after: -3.0)
    assert found["last", "perplexity"].values == (3, 3) and found["last", "perplexity"].statistic == "perplexity"
    assert found["last", "acc"].values == (0, 0)


def test_numbers_of_all_rows_together_have_no_interval(run, tmp_path):
    """BLEU of lm_eval, which is sacreBLEU's: 100 for the same texts; any other set of rows gives nan."""
    import numpy as np
    from sacrebleu import corpus_bleu

    rows = [{"q": "1+1=", "a": "a b c d e f g"}, {"q": "2+2=", "a": "b c d e f g h"}, {"q": "3=", "a": "f e d c b a"}]
    said = {"1+1=": "a b c d e f g", "2+2=": "b c d e f d h", "3=": "f e d c"}
    one = local(
        tmp_path, "say", {"test": rows}, output_type="generate_until", doc_to_text="{{q}}", doc_to_target="{{a}}",
        metric_list=[{"metric": "bleu"}, {"metric": "exact_match"}],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 9},
    )  # fmt: skip
    found = run(one, answer=lambda before, after: said[before.removeprefix("<s>")])
    bleu = found["say", "bleu"]
    number = corpus_bleu(list(said.values()), [[row["a"] for row in rows]]).score
    sums = np.array(bleu.totals).sum(axis=0)
    others = np.array([np.array(bleu.totals)[rows].sum(axis=0) for rows in ([0, 0, 1], [2, 1, 0], [1, 1, 1])])
    assert bleu.statistic(sums[None]).tolist() == [number] and 0 < number < 100
    assert np.isnan(bleu.statistic(others)).tolist() == [True, False, True]
    assert "no interval" in bleu.note and bleu.texts == tuple(said.values())
    assert found["say", "exact_match"].values == (1, 0, 0) and not found["say", "exact_match"].note


def test_filters_and_missing_values(run, tmp_path):
    """A metric that a row lacks does not count it."""
    (tmp_path / "own.py").write_text(
        "def own(doc, results):\n"
        "    return {'length': len(results[0])} | ({'even': 1.0} if len(results[0]) % 2 == 0 else {})\n"
    )
    file = written(tmp_path / "r.jsonl", QUESTIONS)
    lines = {
        "task": "say", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": file}, "cache_dir": str(tmp_path)},
        "doc_to_text": "{{q}}", "doc_to_target": "x", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 9},
        "metric_list": [*measured("length"), {"metric": "even", "aggregation": "mean", "higher_is_better": False}],
        "filter_list": [{"name": name, "filter": [{"function": what}, {"function": "take_first"}]}
                        for name, what in (("low", "lowercase"), ("up", "uppercase"))],
    }  # fmt: skip
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
    (tmp_path / "say.yaml").write_text(text + "process_results: !function own.own\n")
    said = dict(zip([row["q"] for row in QUESTIONS], ["a", "bb", "ccc", "dddd"], strict=True))
    found = run("say", include=tmp_path, allow_code=True, answer=lambda before, _: said[before.removeprefix("<s>")])
    assert set(found) == {("say", f"{metric},{name}") for metric in ("length", "even") for name in ("low", "up")}
    assert found["say", "length,low"].values == (1, 2, 3, 4)
    assert found["say", "even,up"].values == (0, 1, 0, 1) and found["say", "even,up"].weights == (0, 1, 0, 1)
    assert not found["say", "even,up"].higher_is_better and of(found["say", "even,up"]) == 1


@pytest.mark.parametrize(("by_size", "number"), [(True, 4 / 6), (False, (3 / 4 + 1 / 2) / 2)])
def test_groups_have_the_harnesss_number(by_size, number, run, tmp_path):
    """3 of 4 right in one task, 1 of 2 in the other."""
    tasks = [
        local(tmp_path, name, {"test": rows}, metric_list=measured("acc"), **CHOICE)
        for name, rows in (("four", QUESTIONS), ("two", QUESTIONS[:2]))
    ]
    for one in tasks:
        (tmp_path / f"{one['task']}.yaml").write_text(json.dumps(one))
    group = {"group": "both", "task": ["four", "two"]}
    group["aggregate_metric_list"] = [{"metric": "acc", "aggregation": "mean", "weight_by_size": by_size}]
    (tmp_path / "both.yaml").write_text(json.dumps(group))
    right = {"1+2=": 1, "3+3=": -1, "4+5=": 1, "2+9=": 1}

    def answer(before, after):
        return right[before.removeprefix("<s>")] * (1.0 if after != "a" else -1.0)

    found = run("both", include=tmp_path, answer=answer)
    assert set(found) == {("four", "acc"), ("two", "acc"), ("both", "acc")}
    assert of(found["both", "acc"]) == pytest.approx(number, rel=1e-15)
    assert len(found["both", "acc"].items) == 6


def test_settings_of_generation(task, run, tokenizer, tmp_path):
    one = local(
        tmp_path, "say", {"test": QUESTIONS}, output_type="generate_until", doc_to_text="{{q}}", doc_to_target="x",
        metric_list=measured("exact_match"), repeats=2,
        generation_kwargs={"until": ["\n", "b"], "do_sample": True, "temperature": 0.5, "top_p": 0.9},
    )  # fmt: skip
    engine = Told(tokenizer, lambda before, after: "x")
    config = task.Config(tasks=[one], seed=3, generation={"max_gen_toks": 4, "until": ["c"]})
    (result,) = task.run(engine, [], config, screen=Silent())
    first, again = engine.asked[:2]
    assert first.stops == ("c", "<end>") and first.max_new_tokens == 4
    assert (first.temperature, first.top_p) == (0.5, 0.9)
    assert first.ids == again.ids and (first.seed, again.seed) == (3, 4)
    assert len(engine.asked) == 8 and len(result.values) == 4
    for settings, words in (
        ({"num_beams": 4}, "num_beams: 4"),
        ({"top_k": 20}, "top_k: 20"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"max_gen_toks": 512}, "leaves no room"),
    ):
        with pytest.raises(UserError, match=words) as found:
            run(one, generation=settings)
        assert "say, document 0" in str(found.value)
    assert run(one, generation={"do_sample": False, "top_k": 20, "num_beams": 1}, answer=lambda *_: "x")


def test_what_the_model_cannot_read(run, tokenizer, tmp_path):
    rows = [{"q": "1+" * number, "options": ["a", "b"], "right": 0} for number in (5, 15)]
    one = local(tmp_path, "sums", {"test": rows}, metric_list=measured("acc"), **CHOICE)
    screen = Noted()
    run(one, positions=20, screen=screen)
    assert screen.warnings == ["2 of 4 texts are cut at their beginning to fit the model's 20 tokens"]
    rows = [{"q": "1+", "options": options, "right": 0} for options in (["a", "b"], ["a" * 21, ""])]
    with pytest.raises(DataError) as found:
        run(local(tmp_path, "long", {"test": rows}, metric_list=measured("acc"), **CHOICE), positions=20)
    assert [problem.where for problem in found.value.problems] == ["long, document 1"] * 2
    assert "has 21 tokens" in str(found.value) and "has 0 tokens" in str(found.value)
    assert Writer(tokenizer, None).length == 2048


def test_questions_among_their_own_examples_are_told(run, tmp_path):
    """The fault is lm_eval's: with a test split alone, its own question and answer may stand before it."""
    one = local(tmp_path, "sums", {"test": QUESTIONS}, metric_list=measured("acc"), num_fewshot=3, **CHOICE)
    screen = Noted()
    found = run(one, screen=screen)["sums", "acc"]
    shown = [f"{item.prompt_text.rpartition(chr(10))[2]}{item.reference}" for item in found.items]
    assert any(answer in item.prompt_text for answer, item in zip(shown, found.items, strict=True))
    assert screen.warnings == ["sums draws its few-shot examples from its test rows, the question itself among them"]
    safe = one | {"fewshot_split": "test"}
    found = run(safe, screen=(quiet := Noted()))["sums", "acc"]
    assert not any(answer in item.prompt_text for answer, item in zip(shown, found.items, strict=True))
    assert not quiet.warnings


def test_nothing_is_left_behind(task, run, tmp_path, capfd):
    """Random states, the harness's log level, and no line on the terminal."""
    import datasets
    import numpy as np

    one = local(tmp_path, "sums", {"test": QUESTIONS}, **CHOICE)  # without metrics: lm_eval would warn
    bars = datasets.are_progress_bars_disabled()
    before = random.getstate(), str(np.random.get_state()), logging.getLogger("lm_eval").level
    config = task.Config(tasks=[one])
    task.check([], config)
    run(one)
    assert (random.getstate(), str(np.random.get_state()), logging.getLogger("lm_eval").level) == before
    assert datasets.are_progress_bars_disabled() == bars
    assert capfd.readouterr() == ("", "")
    assert "metadata" in one and one["metadata"] == {"version": 1}, "the recipe's own task was changed"


def test_a_chat_template_without_system_messages_is_asked_again(tokenizer, task, tmp_path):
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role }}:{{ m.content }} {% endfor %}"
    )
    screen = Noted()
    mine = language_model(Told(chatty), screen)
    talk = [{"role": "system", "content": "abc"}, {"role": "user", "content": "1+1="}]
    assert mine.apply_chat_template(talk) == mine.apply_chat_template(talk) == "user:1+1= "
    assert len(screen.warnings) == 1 and "system" in screen.warnings[0]
    chatty.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="never"):
        mine.apply_chat_template(talk)
    one = local(tmp_path, "sums", {"test": QUESTIONS}, metric_list=measured("acc"), **CHOICE)
    with pytest.raises(UserError, match="no chat template"):
        task.run(Told(tokenizer), [], task.Config(tasks=[one], chat=True), screen=Silent())
