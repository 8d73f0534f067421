"""Start-up: `tunekit --help` and a refused recipe, beside TRL's, interleaved in one run. Prints one table of ratios."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent
GOOD = "method: sft\ndata: {train: [{path: builtin:instructions}]}\n"


def cpu_seconds(command: list[str], folder: Path) -> tuple[float, int]:
    """CPU seconds (user + system) of a command and its children, and its exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.returncode


def main() -> None:
    """Runs every case in turn, `rounds` times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bad.yaml").write_text(GOOD + "train: {learning_rte: 1e-4}\n", encoding="utf-8")
        (folder / "trl_bad.yaml").write_text("model_name_or_path: x\nlearning_rte: 1e-4\n", encoding="utf-8")
        cases = {
            "tunekit --help": [str(BIN / "tunekit"), "--help"],
            "tunekit sft --help": [str(BIN / "tunekit"), "sft", "--help"],
            "tunekit sft bad.yaml (refused)": [str(BIN / "tunekit"), "sft", "bad.yaml"],
            "trl --help": [str(BIN / "trl"), "--help"],
            "trl sft --help": [str(BIN / "trl"), "sft", "--help"],
            "trl sft --config bad.yaml": [str(BIN / "trl"), "sft", "--config", "trl_bad.yaml"],
        }
        seconds: dict[str, list[float]] = {case: [] for case in cases}
        codes = {}
        for _ in range(rounds):
            for case, command in cases.items():
                spent, codes[case] = cpu_seconds(command, folder)
                seconds[case].append(spent)
    print("| command | CPU s, median | CPU s, best | exit code |\n|---|---|---|---|")
    for case, values in seconds.items():
        print(f"| `{case}` | {statistics.median(values):.2f} | {min(values):.2f} | {codes[case]} |")
    best = {case: min(values) for case, values in seconds.items()}
    print(f"\nhelp: {best['tunekit --help'] / best['trl --help']:.1f}x of trl --help")
    print(f"method help: 1/{best['trl sft --help'] / best['tunekit sft --help']:.0f} of trl sft --help")
    ratio = best["trl sft --config bad.yaml"] / best["tunekit sft bad.yaml (refused)"]
    print(f"refusal: 1/{ratio:.0f} of trl sft --config bad.yaml")


if __name__ == "__main__":
    main()
