"""Tasks of the lm-evaluation-harness: its own by name, and local task files; numbers are its numbers."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import DataError, MachineError, Problem, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.core.registry import nearest
from tunekit.evaluate.contract import Engine, TaskResult
from tunekit.evaluate.extras import need
from tunekit.evaluate.harness_lm import WHAT, apart, document, language_model

READS = "none"
LOCAL = "a local task file works without a network: dataset_path: json, dataset_kwargs: {data_files: {test: FILE}}"
WRONG = (ValueError, LookupError, TypeError, AttributeError, AssertionError)  # what lm_eval says of a task's faults
CODE = "read it, then set allow_code: true"


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="names of tasks, groups or tags, task files (.yaml), or tasks written out here"
    )
    include: Path | None = Field(default=None, description="a folder of task files, whose names come first")
    num_fewshot: int | None = Field(default=None, ge=0, description="examples before a question; the task's by default")
    limit: int | None = Field(default=None, ge=1, description="the first so many rows of every task, in its order")
    chat: bool = Field(default=False, description="put prompts into the model's chat template")
    seed: int = Field(default=1234, description="seed of the few-shot examples and of drawn answers")
    generation: dict[str, Any] = Field(
        default={}, description="over the tasks' own settings of generation: until, max_gen_toks, temperature, ..."
    )
    allow_code: bool = Field(
        default=False, description="run Python code that local task files name; read them before you allow it"
    )


def check(items: Sequence[Any], config: Config) -> None:
    """Loads the tasks and their data, so that what is missing is found before any model is loaded.

    Raises:
        UserError: an unknown task or metric, a task file that is wrong or names code, a missing package.
        DataError: a task's local data cannot be read.
        MachineError: a task's data is on the Hub, which cannot be reached.
    """
    with apart():
        _loaded(config)


def run(engine: Engine, items: Sequence[Any], config: Config, *, screen: Screen) -> list[TaskResult]:
    """One result a task, metric and filter, and one for each metric of a group that has a number of its own.

    The name of the metric is the harness's, with the filter's where there is one: ``exact_match,strict-match``.

    Raises:
        UserError, DataError, MachineError: as ``check`` does; or a request that the model cannot answer.
    """
    started = time.perf_counter()
    if config.chat and engine.tokenizer.chat_template is None:
        raise UserError("the model has no chat template", fix="chat: false")
    with apart():
        loaded = _loaded(config)
        for name, task in loaded["tasks"].items():
            if _sees_itself(task):
                screen.warn(f"{name} draws its few-shot examples from its test rows, the question itself among them")
        found = need("lm_eval.evaluator", "harness", WHAT).evaluate(
            lm=language_model(engine, screen, seed=config.seed),
            task_dict=loaded,
            limit=config.limit,
            bootstrap_iters=0,  # of its standard errors: tunekit has its own
            apply_chat_template=config.chat,
            fewshot_as_multiturn=True,
        )
    asked = {name: sum(len(sample["arguments"]) for sample in samples) for name, samples in found["samples"].items()}
    seconds, results = time.perf_counter() - started, list[TaskResult]()
    for name, task in loaded["tasks"].items():
        results += _results(name, task, found, seconds * asked[name] / sum(asked.values()))
    for group in loaded["groups"].values():
        results += _of_group(group, results)
    return results


def _loaded(config: Config) -> dict[str, Any]:
    """The tasks and groups, with their data, set as the recipe says."""
    if config.include and not config.include.is_dir():
        raise UserError(f"there is no folder '{config.include}'", where="include")
    names = [spec for spec in config.tasks if isinstance(spec, str)]
    files = [Path(name) for name in names if name.endswith((".yaml", ".yml")) or "/" in name]
    names = [name for name in names if Path(name) not in files]
    codes = _codes([*files, *(sorted(config.include.glob("**/*.yaml")) if config.include else [])])
    load = need("lm_eval.tasks._yaml_loader", "harness", WHAT).load_yaml
    own = [spec for spec in config.tasks if isinstance(spec, dict)]
    own += [load(file.expanduser(), resolve_func=False) for file in files]
    manager_of = need("lm_eval.tasks", "harness", WHAT).TaskManager
    folder = str(config.include) if config.include else None
    manager = manager_of(include_path=folder, include_defaults=False)
    own += [entry.cfg for entry in manager.task_index.values() if entry.cfg]
    if not config.allow_code:
        raise_all(UserError, [*codes, *_foreign_metrics(own)])
    members = [part for one in own if isinstance(one.get("task"), list) for part in one["task"]]
    members = [part if isinstance(part, str) else part.get("task") for part in members if "dataset_path" not in part]
    if any(isinstance(name, str) and name not in manager.task_index for name in [*names, *members]):
        manager = manager_of(include_path=folder, include_defaults=True)  # takes seconds: the harness has thousands
    unknown = []
    for name in names:
        if name not in manager.task_index:
            close = nearest(name, manager.all_tasks)
            fix = f"did you mean '{close}'?" if close else "'lm_eval ls tasks' lists those of the harness"
            unknown.append(Problem(f"unknown task '{name}'", fix=fix))
    raise_all(UserError, unknown)
    whole: dict[str, Any] = {"tasks": {}, "groups": {}}
    for spec in config.tasks:
        part = _load(manager, spec)
        for kind, known in whole.items():
            if twice := known.keys() & part[kind].keys():
                raise UserError(f"the task '{min(twice)}' is named twice", where="tasks")
            known |= part[kind]
    for name, task in whole["tasks"].items():
        _set(name, task, config)
    return whole


def _codes(files: Sequence[Path]) -> list[Problem]:
    """The places in task files, and in those that they include, that name Python code.

    Raises:
        UserError: a file is not there, or holds no task.
    """
    yaml, load = need("yaml", "harness", WHAT), need("lm_eval.tasks._yaml_loader", "harness", WHAT).load_yaml
    found, waiting = [], [file.expanduser().resolve() for file in files]
    for file in waiting:  # which grows
        try:
            events = list(yaml.parse(file.read_text(encoding="utf-8")))
            inner = load(file, resolve_func=False, recursive=False).get("include") or []
        except FileNotFoundError as error:
            raise UserError(f"there is no task file '{file}'", where="tasks") from error
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"not a task file: {error}", where=str(file)) from error
        further = [(file.parent / name).resolve() for name in ([inner] if isinstance(inner, str) else inner)]
        waiting += [other for other in further if other not in waiting]
        for event in events:
            if isinstance(event, yaml.ScalarEvent) and event.tag == "!function":
                what = f"the task names Python code: !function {event.value}"
                found.append(Problem(what, f"{file}:{event.start_mark.line + 1}", CODE))
    return found


def _foreign_metrics(configs: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Metrics that the harness does not have: it would run a program of that name, from the Hub or from a folder."""
    need("lm_eval.api.metrics", "harness", WHAT)
    known = need("lm_eval.api.registry", "harness", WHAT).metric_registry
    for config in configs:
        inner = config.get("task")
        yield from _foreign_metrics(
            [part for part in inner if isinstance(part, dict)] if isinstance(inner, list) else []
        )
        for metric in (config.get("metric_list") or []) if config.get("process_results") is None else []:
            name = str(metric.get("metric"))
            if metric.get("hf_evaluate") or name not in known:
                close = nearest(name, list(known.keys()))
                fix = f"did you mean '{close}'?" if close and close != name else "leave it out, or set allow_code: true"
                yield Problem(f"the harness has no metric '{name}' of its own", f"task {inner}", fix)


def _load(manager: Any, spec: str | dict[str, Any]) -> dict[str, Any]:
    """Builds one of the tasks asked for, which reads its data."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from jinja2 import TemplateError

    if isinstance(spec, dict) and "group" in spec:  # the harness hands the group's own keys on to its tasks
        raise UserError(f"the group '{spec['group']}' is written out in the recipe", fix="write it into a task file")
    name = spec if isinstance(spec, str) else spec.get("task")
    try:
        return dict(manager.load([copy.deepcopy(spec)]))
    except (ConnectionError, DatasetNotFoundError) as error:
        raise MachineError(f"the task '{name}' needs a dataset that cannot be had: {error}", fix=LOCAL) from error
    except (FileNotFoundError, DatasetGenerationError) as error:
        fix = "paths in a task file start from the folder that tunekit runs in"
        raise DataError(f"the task '{name}' cannot read its data: {error}", fix=fix) from error
    except ModuleNotFoundError as error:
        raise MachineError(f"the task '{name}' needs a package: {error}", fix=f"pip install {error.name}") from error
    except (*WRONG, ImportError, RuntimeError, TemplateError) as error:
        if "find cache" in str(error):  # offline, with another part of the dataset at hand
            raise MachineError(f"the task '{name}' needs a dataset that cannot be had: {error}", fix=LOCAL) from error
        raise UserError(f"the harness refuses the task '{name}': {type(error).__name__}: {error}") from error


def _set(name: str, task: Any, config: Config) -> None:
    """Puts the recipe's settings into a task, as the harness's own command does.

    Raises:
        UserError: the task does not take them, or is of a kind that tunekit does not run.
    """
    for flag, what in (("UNSAFE_CODE", "runs programs that the model writes"), ("MULTIMODAL", "is not of text alone")):
        if getattr(task, flag, False):
            raise UserError(f"the task '{name}' {what}: tunekit does not run it", where="tasks")
    own = task.get_config("num_fewshot")
    if own == 0 and config.num_fewshot:
        raise UserError(f"the task '{name}' takes no few-shot examples", where="num_fewshot", fix="leave it out")
    if config.num_fewshot is not None or own is None:
        task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    task.set_fewshot_seed(seed=config.seed)
    try:
        if shots := task.get_config("num_fewshot"):
            task.fewshot_context(task.eval_docs[0], num_fewshot=shots)  # there may be too few, or unfit ones
    except WRONG as error:
        raise UserError(f"the task '{name}' cannot show its examples: {error}", where="num_fewshot") from error
    if config.generation and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(config.generation), update=True)
    task.set_fewshot_seed(seed=config.seed)


def _sees_itself(task: Any) -> bool:
    """Whether the harness may show a question, with its answer, as an example before itself."""
    if not task.get_config("num_fewshot") or task.has_training_docs() or task.has_validation_docs():
        return False
    own = task.get_config("fewshot_config")
    return own is None or (own.split is None and own.samples is None)


def _results(name: str, task: Any, found: Mapping[str, Any], seconds: float) -> Iterator[TaskResult]:
    """One task under each metric and filter."""
    for key, number in found["results"][name].items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        rows = [sample for sample in found["samples"][name] if sample["filter"] == chosen]
        yield TaskResult(
            name=name,
            metric=metric if chosen == "none" else key,
            higher_is_better=found["higher_is_better"].get(name, {}).get(metric) is not False,
            items=tuple(document(name, row) for row in rows),
            texts=tuple(str(row["resps"][0][0]) for row in rows if isinstance(row["arguments"][0][-1], dict)),
            seconds=seconds,
            **_measure([row.get(metric) for row in rows], task.aggregation().get(metric), number),
        )


def _measure(values: Sequence[Any], aggregation: Any, number: Any) -> dict[str, Any]:
    """Rows, and how they become the harness's number; a row without a value (None) does not count."""
    import numpy as np

    known = need("lm_eval.api.metrics", "harness", WHAT)
    factors = {
        None: ("mean", 1.0), known.mean: ("mean", 1.0), known.nanmean: ("mean", 1.0),
        known.perplexity: ("perplexity", -1.0), known.weighted_perplexity: ("perplexity", -1.0),
        known.bits_per_byte: ("mean", -1 / math.log(2)),
    }  # fmt: skip
    pairs = [value if isinstance(value, tuple | list) and len(value) == 2 else (value, 1.0) for value in values]
    plain = all(value is None or isinstance(value, Real | np.bool_) for pair in pairs for value in pair)
    if aggregation in factors and plain:
        statistic, factor = factors[aggregation]
        absent = [value is None or (aggregation is known.nanmean and math.isnan(value)) for value, _ in pairs]
        scaled = [(0.0, 0.0) if out else (factor * float(v), float(w)) for (v, w), out in zip(pairs, absent)]
        return {"statistic": statistic, "values": tuple(v for v, _ in scaled), "weights": tuple(w for _, w in scaled)}
    # no row has a share of its own: the number is that of these very rows, told by two sums, and unknown of all others
    totals = [((row + 1.0) ** 2, (row + 1.0) ** 3) for row in range(len(values))]
    whole = [sum(column) for column in zip(*totals)]

    def statistic_of(sums: Any) -> Any:
        return np.where(np.isclose(sums, whole, rtol=1e-12, atol=0).all(axis=-1), float(number), math.nan)

    return {
        "statistic": statistic_of,
        "values": (math.nan,) * len(values),
        "weights": (1.0,) * len(values),
        "totals": tuple(totals),
        "note": "the harness's number of all rows together; it has no interval",
    }


def _of_group(group: Any, results: Sequence[TaskResult]) -> Iterator[TaskResult]:
    """A group's own numbers, where they are means over its tasks' rows, or means of its tasks' means."""
    inside = {task.task_name for task in group.get_all_tasks()}
    for wanted in group.aggregate_metric_list or []:
        metrics = {result.metric for result in results if result.metric.partition(",")[0] == wanted.metric}
        for metric in sorted(metrics):
            parts = [result for result in results if result.name in inside and result.metric == metric]
            if all(part.statistic == "mean" for part in parts):
                size = {part.name: 1.0 if wanted.weight_by_size else sum(part.weights) for part in parts}
                yield TaskResult(
                    name=group.name,
                    metric=metric,
                    higher_is_better=parts[0].higher_is_better,
                    statistic="mean",
                    values=tuple(value / size[part.name] for part in parts for value in part.values),
                    weights=tuple(weight / size[part.name] for part in parts for weight in part.weights),
                    items=tuple(item for part in parts for item in part.items),
                )
