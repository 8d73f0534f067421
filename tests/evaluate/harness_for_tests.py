"""A plain engine that answers one request at a time, one that is told its answers, and tasks of real data in files."""

import csv
import json
from dataclasses import dataclass, field
from typing import Any

from tunekit.evaluate.contract import Generated, Scored


@dataclass
class PlainEngine:
    """The contract in a loop over the model's plain logits."""

    model: Any
    tokenizer: Any

    @property
    def positions(self):
        return self.model.config.max_position_embeddings

    def likelihoods(self, requests, screen, what, done=lambda index, answer: None):
        import torch

        found = []
        for index, request in enumerate(requests):
            count = sum(request.scored)
            with torch.no_grad():
                logits = self.model(torch.tensor([request.ids[:-1]])).logits
            logits = torch.log_softmax(logits, dim=-1)[0, -count:]
            targets = torch.tensor(request.ids[-count:])
            value = float(logits.gather(1, targets[:, None]).sum())
            found.append(Scored(value, count, bool((logits.argmax(dim=-1) == targets).all())))
            done(index, found[-1])
        return found

    def generate(self, requests, screen, what, done=lambda index, answer: None):
        import torch

        ends = {self.tokenizer.eos_token_id}
        found = []
        for index, request in enumerate(requests):
            assert request.temperature == 0
            ids = list(request.ids)
            text, ended = "", False
            for _ in range(request.max_new_tokens):
                with torch.no_grad():
                    ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
                new = ids[len(request.ids) :]
                ended = new[-1] in ends
                text = self.tokenizer.decode(new, skip_special_tokens=True)
                places = [text.index(stop) for stop in request.stops if stop in text]
                if ended or places:
                    text, ended = text[: min(places, default=len(text))], True
                    break
            found.append(Generated(text, len(ids) - len(request.ids), ended))
            done(index, found[-1])
        return found


@dataclass
class Told:
    """Answers what a function says, and remembers what it was asked."""

    tokenizer: Any
    answer: Any = lambda text: 0.0
    positions: int | None = 512
    asked: list = field(default_factory=list)

    def likelihoods(self, requests, screen, what, done=lambda index, answer: None):
        self.asked += requests
        return [self._scored(request) for request in requests]

    def _scored(self, request):
        start = request.scored.index(True)
        before, after = self.tokenizer.decode(request.ids[:start]), self.tokenizer.decode(request.ids[start:])
        return Scored(self.answer(before, after), sum(request.scored), False)

    def generate(self, requests, screen, what, done=lambda index, answer: None):
        self.asked += requests
        return [Generated(self.answer(self.tokenizer.decode(request.ids), None), 1, True) for request in requests]


def written(path, rows):
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def local(folder, name, splits, **fields):
    """A task of rows that are written beside it; ``splits`` are those of the task: test, validation, fewshot, ..."""
    files = {split: written(folder / f"{name}.{split}.jsonl", rows) for split, rows in splits.items()}
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "metadata": {"version": 1},
        **{f"{split}_split": split for split in splits},
    }
    return task | fields


def measured(*names):
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


MC2 = """\
import math


def mass(doc, results):
    weights = [math.exp(value) for value, _ in results]
    right = sum(weight for weight, label in zip(weights, doc["mc2_targets"]["labels"]) if label)
    return {"mc2": right / sum(weights)}
"""


def real_tasks(shared, folder, rows):
    """PIQA, TruthfulQA's MC1 and MC2, two subjects of MMLU and one task of BBH, of so many rows each."""
    data = shared / "benchmarks"
    labels = (data / "piqa_valid_labels.first1200.lst").read_text().split()
    piqa = [json.loads(line) for line in (data / "piqa_valid.first1200.jsonl").read_text().splitlines()]
    piqa = [row | {"label": int(label)} for row, label in zip(piqa, labels, strict=True)][:rows]
    truth = json.loads((data / "truthfulqa_mc_en.first600.json").read_text())[:rows]
    truth = [{key: row[key] for key in ("question", "mc1_targets", "mc2_targets")} for row in truth]
    bbh = json.loads((data / "bbh" / "object_counting.json").read_text())["examples"][: rows + 3]
    asked = {"output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": 0}
    tasks = [
        local(
            folder, "piqa_local", {"validation": piqa}, output_type="multiple_choice",
            doc_to_text="Question: {{goal}}\nAnswer:", doc_to_choice="{{[sol1, sol2]}}", doc_to_target="label",
            metric_list=measured("acc", "acc_norm"),
        ),
        local(
            folder, "mc1_local", {"validation": truth}, doc_to_choice="{{mc1_targets.choices}}",
            metric_list=measured("acc"), **asked,
        ),
        local(
            folder, "mc2_local", {"validation": truth}, doc_to_choice="{{mc2_targets.choices}}",
            metric_list=measured("mc2"), **asked,
        ),
        local(
            folder, "bbh_local", {"test": bbh[3:], "fewshot": bbh[:3]}, output_type="generate_until", num_fewshot=2,
            description="Count.\n\n", doc_to_text="Q: {{input}}\nA:", doc_to_target="{{target}}",
            metric_list=[*measured("exact_match")], fewshot_config={"sampler": "first_n"},
            generation_kwargs={"until": ["</s>", "Q:", "\n\n"], "do_sample": False, "max_gen_toks": 12},
            filter_list=[
                {"name": "strict", "filter": [{"function": "take_first"}]},
                {"name": "digits", "filter": [
                    {"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}
                ]},
            ],
        ),
    ]  # fmt: skip
    for subject in ("astronomy", "human_aging"):
        parts = {"test": _mmlu(data / "mmlu" / "test" / f"{subject}_test.csv")[:rows]}
        parts["fewshot"] = _mmlu(data / "mmlu" / "dev" / f"{subject}_dev.csv")
        letters = "".join(f"{letter}. {{{{choices[{number}]}}}}\n" for number, letter in enumerate("ABCD"))
        tasks.append(
            local(
                folder, f"mmlu_{subject}", parts, output_type="multiple_choice", num_fewshot=3,
                doc_to_text="{{question.strip()}}\n" + letters + "Answer:", doc_to_choice=list("ABCD"),
                doc_to_target="answer", metric_list=measured("acc"), fewshot_config={"sampler": "first_n"},
            )
        )  # fmt: skip
    return tasks


def _mmlu(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "question": row["question"],
            "choices": [row[f"choice{number}"] for number in range(4)],
            "answer": int(row["answer"]),
        }
        for row in rows
    ]
