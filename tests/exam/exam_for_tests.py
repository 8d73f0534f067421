"""A hand-made evaluation folder, as `tunekit eval` would leave it."""

import random

import pyarrow as pa
import pyarrow.parquet as pq

from tunekit.exam.facts import RESULTS, ExamRecord, save

LABELS = ("billing", "login", "refund", "shipping")


def estimate(value, low, high, **more):
    return {"value": value, "low": low, "high": high} | more


def task(name, metric, n, base, tuned, difference, verdict, **more):
    return {
        "name": name,
        "metric": metric,
        "higher_is_better": True,
        "n": n,
        "base": estimate(*base) if base else None,
        "tuned": estimate(*tuned),
        "difference": estimate(*difference[:3], p_value=difference[3]) if difference else None,
        "verdict": verdict,
    } | more


CLEAN = task("support", "exact_match", 390, (0.302, 0.258, 0.350), (0.569, 0.519, 0.617), (0.267, 0.21, 0.32, 1e-6),
             "better")  # fmt: skip
RECORD = {
    "created": "2026-03-02T09:30:00Z",
    "tunekit": "0.1.0",
    "models": {
        "tuned": {"name": "runs/support-bot/model", "kind": "adapter", "identity": "ab12" * 16},
        "baseline": {"name": "Qwen/Qwen3-0.6B", "kind": "model", "revision": "c1899de2" * 5},
    },
    "seeds": {"resampling": 0, "rows": 0},
    "confidence": 0.95,
    "engine": "transformers",
    "tasks": [
        task("support", "exact_match", 400, (0.3125, 0.269, 0.36), (0.585, 0.536, 0.632), (0.2725, 0.22, 0.32, 2e-6),
             "better", clean=CLEAN, seconds=41.2),
        task("support", "rougeL", 400, (0.402, 0.38, 0.425), (0.711, 0.69, 0.73), (0.309, 0.28, 0.33, 1e-4), "better",
             note="use_stemmer: true", seconds=41.2),
        task("topics", "accuracy", 400, (0.7425, 0.697, 0.783), (0.76, 0.716, 0.799), (0.0175, -0.02, 0.055, 0.41),
             "no detectable difference", seconds=8.0),
        task("wiki", "perplexity", 400, (8.214, 7.61, 8.9), (8.931, 8.2, 9.7), (0.717, 0.5, 0.95, 1e-4), "worse",
             higher_is_better=False, statistic="perplexity", seconds=12.5),
    ],
    "contamination": {
        "checked": 400,
        "exact": 4,
        "ngram": 6,
        "against": "data/train.jsonl",
        "words": 13,
        "rows": [
            {"where": f"data/eval.jsonl:{n}", "matched": f"data/train.jsonl:{7 * n}", "how": how}
            for n, how in enumerate(["exact"] * 4 + ["ngram"] * 6, 1)
        ],
    },
    "forgetting": [
        task("common sense", "accuracy", 200, (0.612, 0.543, 0.677), (0.547, 0.477, 0.614),
             (-0.065, -0.12, -0.01, 0.03), "worse"),
    ],
    "warnings": ["12 prompts of support were cut to the model's 2,048 tokens"],
    "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
    "data_fingerprint": "9f2c" * 16,
    "seconds": {"loading": 8.1, "base": 31.0, "tuned": 30.5, "statistics": 0.8},
}  # fmt: skip


def row(task, metric, where, base_value, tuned_value, **more):
    return {
        "task": task,
        "metric": metric,
        "where": where,
        "prompt": "How do I reset my password?",
        "reference": "Open Settings.",
        "base_text": "Passwords are important.",
        "tuned_text": "Open Settings.",
        "base_value": base_value,
        "tuned_value": tuned_value,
        "contaminated": False,
    } | more


def example_rows(n=400):
    """``n`` rows of each of the record's tasks, drawn with a fixed seed."""
    chance = random.Random(5)
    things = ("password", "invoice", "export", "team", "address")
    rows = []
    for at in range(1, n + 1):
        where, leak = f"data/eval.jsonl:{at}", at <= 10
        thing = chance.choice(things)
        right = f"Open Settings, then {thing.capitalize()}, then Change {thing}."
        known, learned = chance.random() < 0.31, chance.random() < 0.58
        texts = {
            "prompt": f"Customer {at}: how do I change my {thing}?\n\nAnswer in one sentence.",
            "reference": right,
            "base_text": right if known else f"To change it, think about what {thing} means to you. " * (at % 3),
            "tuned_text": right if learned else f"Open Settings, then {thing.capitalize()}.",
            "contaminated": leak,
        }
        rows.append(row("support", "exact_match", where, float(known), float(learned), **texts))
        overlap = [1.0 if hit else chance.uniform(0.1, 0.6) for hit in (known, learned)]
        rows.append(row("support", "rougeL", where, *overlap, **texts))
        label = chance.choice(LABELS)
        said = [label if chance.random() < 0.75 else chance.choice((*LABELS, "I cannot say")) for _ in range(2)]
        texts = {"prompt": f"Topic of: my {thing} is wrong", "reference": label, "base_text": said[0],
                 "tuned_text": said[1], "contaminated": False}  # fmt: skip
        rows.append(row("topics", "accuracy", where, *(float(one == label) for one in said), **texts))
        texts = {"prompt": "", "reference": f"A paragraph about {thing}s. " * 12, "base_text": None, "tuned_text": None,
                 "contaminated": False}  # fmt: skip
        nats = chance.uniform(90, 120)
        rows.append(row("wiki", "perplexity", where, nats, nats * chance.uniform(1.0, 1.08), **texts))
    return rows


def write_results(path, rows):
    """``results.parquet``, with the types that hold also where every value is null."""
    kinds = dict.fromkeys(("base_value", "tuned_value"), pa.float64()) | {"contaminated": pa.bool_()}
    kinds |= {name: pa.list_(pa.float64()) for name in ("base_totals", "tuned_totals")}
    kinds["weight"] = pa.float64()
    names = list(rows[0])
    columns = {name: pa.array([one[name] for one in rows], kinds.get(name, pa.string())) for name in names}
    pq.write_table(pa.table(columns), path / RESULTS)


def make_exam(path, rows=None, **changes):
    """Writes an evaluation folder; ``changes`` replace parts of its record."""
    path.mkdir(parents=True, exist_ok=True)
    save(path, ExamRecord.model_validate(RECORD | changes))
    write_results(path, example_rows() if rows is None else rows)
    return path
