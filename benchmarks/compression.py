"""What smaller models cost and save: every kind that can be made here, GPTQ beside rounding, Wanda beside magnitude.

    python benchmarks/compression.py [--parts kinds,rounding,sparsity,healing] [--model builtin:tiny] [--to nf4,q8_0]
        [--data FILE] [--calib FILE] [--rows 128] [--calib-rows 256] [--calib-length 512] [--answers 8] [--keep DIR] ...

- kinds: `tunekit quantize` of the model to each kind; size on the disk beside the arithmetic, quality, time, memory.
- rounding: gptq4 and rtn4 with the same groups, and the change of perplexity from the one to the other, row by row.
- sparsity: the same of Wanda and magnitude, for half of the weights and for 2:4.
- healing: the quickstart, a quarter of its layers left out, trained again; exact match on the held-out questions.

`--model 100m` is a Llama of random weights (hidden size 768, 12 layers, vocabulary 32,000, bfloat16): its quality says
nothing, and is left out. Without `--data` and `--calib` the rows are those of the run that made the model, or, for
other models, the embedded model's text. Other work on the machine changes times: compare them within a table only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speed import HERE, machine, say

PARTS = ("kinds", "rounding", "sparsity", "healing")
LARGE = {"vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 1024,
         "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 3}  # fmt: skip
TEXT = {"path": "builtin:text", "split": "held_out", "limit": 4000}
READ = {"path": "builtin:text", "limit": 4000}
MIB = 1 << 20


def tunekit(options: argparse.Namespace, *arguments: str) -> dict[str, Any]:
    """The command in a process of its own.

    Returns:
        The last line of its JSON; where it failed, what it said stands in ``failed``.
    """
    around = os.environ | {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "tunekit", *arguments, "--json"]
    done = subprocess.run(command, env=around, capture_output=True, text=True, cwd=HERE.parent, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = next((event for event in reversed(events) if event.get("event") in ("done", "kinds")), {})
    words = done.stderr.strip().splitlines() or [json.dumps(events[-1:])]
    return dict(last) if last else {"failed": " ".join(line.strip() for line in words[-3:])[:300]}


def large(folder: Path) -> Path:
    """The model of random weights, with the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunekit.model.names import resolve_name

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LARGE)).to(torch.bfloat16)
    model.generation_config.eos_token_id = LARGE["eos_token_id"]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_name("builtin:tiny").location).save_pretrained(folder)
    say(f"{sum(tensor.numel() for tensor in model.parameters()):,} random weights")
    return folder


def rows_of(options: argparse.Namespace) -> dict[str, Any]:
    """What is measured on, and what is looked at, as keys of a recipe."""
    proof = {"rows": options.rows, "answers": options.answers, "new_tokens": options.new_tokens}
    looked = {"rows": options.calib_rows, "length": options.calib_length}
    own = (Path(options.model) / "plan.json").exists() and not options.data and not options.calib
    if own:
        return {"proof": proof, "calibration": looked}
    data = {"path": str(Path(options.data).resolve())} if options.data else TEXT
    read = {"path": str(Path(options.calib).resolve())} if options.calib else READ
    return {"proof": proof | {"data": [data]}, "calibration": looked | {"data": [read]}}


def quantized(options: argparse.Namespace, model: str, to: Sequence[Any], target: Path) -> list[dict[str, Any]]:
    """What came of each kind: ``kind``, ``record`` or ``refused``, ``folder``."""
    recipe = target.with_suffix(".yaml")
    rows, names = rows_of(options), {block if isinstance(block, str) else block["kind"] for block in to}
    read = {one["kind"] for one in tunekit(options, "quantize", "--list")["kinds"] if one["calibrated"]}
    rows = rows if names & read else {"proof": rows["proof"]}
    recipe.write_text(json.dumps({"model": model, "to": list(to)} | rows), encoding="utf-8")
    found = tunekit(options, "quantize", str(recipe), "-o", str(target))
    if "failed" in found:
        raise SystemExit(found["failed"])
    return found["kinds"]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def between(found: Sequence[float], form: str = "{:.4g}") -> str:
    """A value with its interval."""
    value, low, high = (form.format(number) for number in found)
    return f"{value} ({low} to {high})"


def quality(record: Mapping[str, Any]) -> list[str]:
    """Perplexity, its paired change, divergence, agreement."""
    return [between(record["perplexity"]), between([100 * x for x in record["increase"]], "{:+.2f}") + " %",
            f"{record['mean_kl']:.2g}", f"{record['top1_agreement']:.2%}"]  # fmt: skip


def cost(record: Mapping[str, Any], at: int) -> list[str]:
    """Loading, memory, speed; ``at`` 0 of the source, 1 of the artefact."""
    found = {key: values[at] for key, values in record["cost"].items()}
    return [f"{found['load_seconds']:.1f}", f"{found['peak_memory'] / MIB:,.0f}", f"{found['prompt_speed']:,.0f}",
            f"{found['answer_speed']:,.0f}"]  # fmt: skip


def known_kinds(options: argparse.Namespace) -> dict[str, bool]:
    """Every kind, and whether it can be made here."""
    found = tunekit(options, "quantize", "--list")["kinds"]
    return {one["kind"]: "cpu" in one["devices"] and not one["missing"] for one in found}


def kinds(options: argparse.Namespace, model: str, folder: Path) -> None:
    """Every kind that can be made here."""
    known = known_kinds(options)
    wanted = options.to.split(",") if options.to else list(known)
    left = [kind for kind in wanted if not known[kind]]
    told = quantized(options, model, [kind for kind in wanted if known[kind]], folder / "kinds")
    records = [one["record"] for one in told if one["record"]]
    random = options.model == "100m"
    lines = []
    if records:
        first, bare = records[0], [] if random else [between(records[0]["source_perplexity"]), "", "", ""]
        lines.append(["source", f"{first['source_size'] / MIB:,.2f}", "", "", *bare, *cost(first, 0), ""])
    for record in records:
        off, less = record["size"] / record["expected_size"] - 1, record["source_size"] / record["size"]
        own = [] if random else quality(record)
        lines.append([f"`{record['kind']}`", f"{record['size'] / MIB:,.2f}", f"{off:+.2%}", f"{less:.2f}", *own,
                      *cost(record, 1), f"{record['seconds']:.0f}"])  # fmt: skip
    head = ["kind", "MiB", "beside the arithmetic", "smaller by", "perplexity", "rises by", "mean KL", "top-1",
            "loads, s", "memory, MiB", "reads, tok/s", "writes, tok/s", "made in, s"]  # fmt: skip
    print(table(head[:4] + head[8:] if random else head, lines))
    if records:
        print(f"{records[0]['rows_measured']} rows, {records[0]['positions']:,} positions ({records[0]['rows']})\n")
    for one in told:
        if one["refused"]:
            print(f"{one['kind']}: refused: {one['refused']}\n")
    if left:
        print(f"not run here: {', '.join(left)}\n")


@contextmanager
def read_rows(options: argparse.Namespace, model: str) -> Iterator[list[Any]]:
    """The rows that the command measures on, to put two artefacts beside each other."""
    from tunekit.compress import proof, source
    from tunekit.core.progress import Silent
    from tunekit.exam import rows
    from tunekit.recipe.schema import SourceBlock

    named = rows_of(options)["proof"].get("data")
    with source.opened(model, None, Silent()) as found:
        if named:
            blocks, fitter = [SourceBlock(**block) for block in named], rows.fitter_of(found.tokenizer)
            held: Sequence[Any] = list(rows.examples(blocks, HERE, fitter, rows.Tally()))
        else:
            assert found.run is not None
            held = rows.held_out(found.run, Silent())
        yield proof.fitted(held, found.positions, options.rows, options.new_tokens)


def beside(options: argparse.Namespace, model: str, one: Path, other: Path) -> dict[str, Any]:
    """The second artefact as the proof would tell of it, were the first its source."""
    from tunekit.compress import proof, sizes
    from tunekit.compress.contract import TRANSFORMERS

    with read_rows(options, model) as rows, tempfile.TemporaryDirectory() as kept:
        found = [
            proof.Measured(path.name, sizes.stored(path), proof.measure(
                TRANSFORMERS, path, rows, Path(kept), first=path == one, threads=options.threads, prompts=0,
                new_tokens=options.new_tokens))
            for path in (one, other)
        ]  # fmt: skip
        return proof.figures(*found)


def compare(options: argparse.Namespace, model: str, made: Sequence[Mapping[str, Any]], words: Sequence[str]) -> None:
    """A table of pairs: each second one beside the first."""
    lines = []
    for word, one, other in zip(words, made[::2], made[1::2], strict=True):
        for part, name in ((one, f"{word}, {one['kind']}"), (other, f"{word}, {other['kind']}")):
            change = ""
            if part is other and one.get("record") and other.get("record"):
                pair = beside(options, model, Path(one["folder"]), Path(other["folder"]))
                change = between([100 * x for x in pair["increase"]], "{:+.2f}") + " %"
            found = quality(part["record"]) if part.get("record") else [part["refused"], "", "", ""]
            lines.append([name, *found, change])
    first = next(one["record"] for one in made if one.get("record"))
    lines.insert(0, ["source", between(first["source_perplexity"]), "", "", "", ""])
    print(table(["", "perplexity", "beside the source", "mean KL", "top-1", "beside the line above"], lines))
    print(f"{first['rows_measured']} rows, {first['positions']:,} positions\n")


def rounding(options: argparse.Namespace, model: str, folder: Path) -> None:
    """GPTQ and rounding to nearest, with the same groups."""
    if not known_kinds(options)["gptq4"]:
        print("not run here: rtn4, gptq4 (llm-compressor is missing)\n")
        return
    to = [{"kind": kind, "group_size": options.group} for kind in ("rtn4", "gptq4")]
    made = quantized(options, model, to, folder / "rounding")
    compare(options, model, made, [f"groups of {options.group}"])


def sparsity(options: argparse.Namespace, model: str, folder: Path) -> None:
    """Magnitude and Wanda."""
    rows = rows_of(options)
    given = [f"proof.{key}={json.dumps(value)}" for key, value in rows["proof"].items()]
    given += [f"calibration.{key}={json.dumps(value)}" for key, value in rows.get("calibration", {}).items()]
    made = []
    cuts = {"half": ("--sparsity", "0.5"), "2:4": ("--pattern", "2:4")}
    for word, cut in cuts.items():
        for way in ("magnitude", "wanda"):
            target = folder / f"{way}-{word.replace(':', '-')}"
            own = [] if way == "wanda" else ["calibration"]
            sets = [part for one in given if one.split(".")[0] not in own for part in ("--set", one)]
            found = tunekit(options, "prune", model, "--way", way, *cut, "-o", str(target), *sets)
            record = target / "prune.json"
            told = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
            made.append({"kind": way, "folder": str(target), "record": told, "refused": found.get("failed")})
    compare(options, model, made, list(cuts))


def answered(options: argparse.Namespace, path: Path, folder: Path) -> dict[str, float]:
    """Exact match on the held-out questions of the embedded world, with its interval."""
    recipe = folder / f"eval-{path.name}.yaml"
    task = {"kind": "generation", "metrics": ["exact_match"], "max_new_tokens": 32}
    data = [{"path": "builtin:instructions", "split": "held_out"}]
    asked = {"model": str(path), "baseline": "none", "data": data, "tasks": [task]}
    recipe.write_text(json.dumps(asked), encoding="utf-8")
    found = tunekit(options, "eval", str(recipe), "-o", str(folder / recipe.stem))
    if "failed" in found:
        raise SystemExit(found["failed"])
    return found["record"]["tasks"][0]["tuned"] | {"n": found["record"]["tasks"][0]["n"]}


def healing(options: argparse.Namespace, model: str, folder: Path) -> None:
    """A quarter of the quickstart's layers left out, and trained again."""
    recipes, run = HERE.parent / "recipes", folder / "quickstart"
    done = tunekit(options, "sft", str(recipes / "quickstart.yaml"), "--output", str(run))
    if "failed" in done:
        raise SystemExit(done["failed"])
    asked = ["prune", str(run), "--way", "depth", "--layers", "1", "--set", "proof.rows=64", "--set", "proof.answers=0"]
    tunekit(options, *asked, "-o", str(folder / "pruned"))
    tunekit(options, *asked, "-o", str(folder / "healed"), "--heal", str(recipes / "prune" / "heal.yaml"))
    found = {path: answered(options, path, folder) for path in (run, folder / "pruned", folder / "healed")}
    scores = [one["value"] for one in found.values()]
    lines = []
    for path, one in found.items():
        own = path / "prune.json"
        record = json.loads(own.read_text(encoding="utf-8")) if own.exists() else None
        less = f"{record['source_size'] / record['size']:.2f}" if record else ""
        ppl = between(record["perplexity"]) if record else ""
        exact = between([100 * one[key] for key in ("value", "low", "high")], "{:.1f}") + " %"
        lines.append([path.name, exact, ppl, less])
    print(table(["", f"exact match of {found[run]['n']:.0f}", "perplexity", "smaller by"], lines))
    if scores[0] > scores[1]:
        print(f"recovered: {(scores[2] - scores[1]) / (scores[0] - scores[1]):.0%} of what was lost\n")


def main() -> None:
    """Runs the parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--to", default="", help="kinds; default: all that can be made here")
    parser.add_argument("--data", default="", help="rows to measure on")
    parser.add_argument("--calib", default="", help="rows that are looked at")
    parser.add_argument("--calib-rows", type=int, default=256, help="so many of them")
    parser.add_argument("--calib-length", type=int, default=512, help="tokens of each that are looked at")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for what is made; default: a temporary one")
    options = parser.parse_args()
    works = {"kinds": kinds, "rounding": rounding, "sparsity": sparsity, "healing": healing}
    say(machine())
    with tempfile.TemporaryDirectory(prefix="compression-") as place:
        folder = options.keep or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        path = large(folder / "100m") if options.model == "100m" else Path(options.model)
        model = str(path.resolve()) if path.is_dir() else options.model
        for part in options.parts.split(","):
            print(f"### {part}: {options.model}\n", flush=True)
            works[part](options, model, folder)


if __name__ == "__main__":
    main()
