"""Trains, kills, stops, resumes and damages tiny runs at random, and counts every end that has no explanation.

An end is explained when exit code and text fit what was done to the run, and when the run that went on until its end
has the weights, rows, metrics and file names of one that nobody disturbed. Exit code 1 when one end is unexplained;
what is left of that run is kept. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "train"))

from crash_for_tests import LORA, Case, Server

CACHES = ("torchinductor_", "pymp-")  # torch's own, kept on purpose; Python's sockets of a loader that was killed
ROUNDS = 4  # times at most that one run is disturbed
KINDS = {
    "left alone": (),
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
}
DAMAGES = ("flip", "halve", "empty", "delete", "junk")


def draw_recipe(draw: random.Random, ranks: float) -> dict:
    """A recipe's method and blocks; ``ranks``: how often it has two processes."""
    method = draw.choice(["sft", "sft", "pretrain"])
    many = draw.random() < ranks
    packing = draw.random() < 0.3
    streaming = not packing and not many and draw.random() < 0.25
    every = draw.choice([1, 2, 3])
    blocks: dict = {
        "train": {"max_steps": draw.choice([6, 8]), "save_every": every, "keep_checkpoints": draw.choice([1, 2, 2, 3])},
        "data": {"packing": True, "max_length": 64} if packing else {"streaming": True} if streaming else {},
    }
    if draw.random() < 0.3:
        blocks["train"]["micro_batch_size"] = 2
    if draw.random() < 0.1 and not streaming:
        blocks["train"]["workers"] = 1
    if draw.random() < 0.4:
        blocks["adapter"] = LORA
    if draw.random() < 0.3 and not streaming:
        blocks["data"]["eval"] = {"count": 5}
        blocks["eval"] = {"every": every, "batch_size": 4}
    if many:
        blocks["launch"] = {"processes": 2}
    return {"method": method, **blocks}


def damage(draw: random.Random, run: Path, kind: str) -> Path | None:
    """Damages a file of the newest checkpoint, or leaves junk; returns the file, None when there is none."""
    if kind == "junk":
        for name in (".staging/step-000099/model.safetensors", "checkpoints/.deleted-step-000001/x",
                     ".model.abcdef/config.json", ".rehearsal/model/x"):  # fmt: skip
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(b"half")
        (run / ".record.json.abcdef").write_bytes(b"half")
        return None
    found = sorted(path for path in run.glob("checkpoints/step-*") if path.name[5:].isdigit())
    if not found:
        return None
    path = draw.choice(sorted(path for path in found[-1].iterdir() if path.stat().st_size > 1))
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content[: len(content) // 2] if kind == "halve" else b"" if kind == "empty" else content)
    if kind == "delete":
        path.unlink()
    return path


def fits(kind: str, code: int, text: str) -> bool:
    """Whether an exit code is one that this signal explains; any run may have ended before it came."""
    working = "loading model" in text and "\nTrained" not in text  # the program catches signals by then, and still
    if code == 0:
        return True
    if kind == "SIGKILL":
        return code == -signal.SIGKILL
    if kind == "SIGTERM":
        return code == 143 or (code == -signal.SIGTERM and not working)
    if kind.startswith("SIGINT"):
        aborted = code == 1 and "Aborted" in text  # while the command line is read
        return code == 130 or aborted or (kind == "SIGINT twice" and code == -signal.SIGINT)
    return False


def differences(case: Case) -> list[str]:
    """What is not as in the undisturbed run; a stop makes a checkpoint of its own step, so these are only counted."""
    found = sorted(path for path in case.run_dir.glob("checkpoints/step-*") if path.name[5:].isdigit())
    inside = {str(path.relative_to(case.run_dir)) for folder in found for path in [folder, *folder.rglob("*")]}
    ours = {name for name in case.expected["files"] if name.startswith("checkpoints/step-")}
    keep = json.loads(case.recipe.read_text())["train"]["keep_checkpoints"]
    more = [f"{len(found)} checkpoints: {[path.name for path in found]}"] if not 0 < len(found) <= keep else []
    return case.differences(without=inside | ours) + more


class Soak:
    """The cases so far, and the counts."""

    def __init__(self, home: Path, seed: int, ranks: float) -> None:
        self.home, self.draw, self.ranks = home, random.Random(seed), ranks
        self.server = Server(home / "server")
        warm = Case(self.server, home / "warm")
        self.server.warm(warm.argv(warm.run_dir))
        self.cases: dict[str, Case] = {}
        self.ends: Counter[tuple[str, str]] = Counter()
        self.unexplained: list[str] = []
        self.runs = 0
        self.descriptors = -1

    def case(self) -> Case:
        """One that was used before, or a new one with its undisturbed run."""
        if self.cases and self.draw.random() < 0.5:
            return self.cases[self.draw.choice(sorted(self.cases))]
        recipe = draw_recipe(self.draw, self.ranks)
        key = json.dumps(recipe, sort_keys=True)
        if key not in self.cases:
            self.cases[key] = Case(self.server, self.home / f"case-{len(self.cases)}", **recipe)
        return self.cases[key]

    def cycle(self) -> None:
        """One run from its beginning to its end, disturbed on the way."""
        case = self.case()
        story: list[str] = [f"recipe {case.recipe.read_text()}"]
        hurt: dict[str, str] = {}  # damaged files and how, of which nobody has been told yet
        shutil.rmtree(case.run_dir, ignore_errors=True)
        rounds = self.draw.randint(1, ROUNDS)
        for number in range(rounds + 1):
            kind = "left alone" if number == rounds else self.draw.choice(list(KINDS))
            end = self.disturbed(case, kind, begin=number == 0)
            story.append(f"{kind}: exit {end.code}\n{end.text}")
            self.note(kind, end, case, story, hurt)
            if end.code == 4 or len(story) == 1:
                break
            if number < rounds - 1 and self.draw.random() < 0.35 and case.run_dir.exists():
                how = self.draw.choice(DAMAGES)
                if how == "junk" and (case.run_dir / "plan.json").exists() and not self.finished(case):
                    damage(self.draw, case.run_dir, how)
                    story.append("junk left")
                    self.ends["junk left", "gone on with"] += 1
                elif how != "junk" and (file := damage(self.draw, case.run_dir, how)):
                    hurt[file.name] = how
                    story.append(f"{how} {file}")
        else:
            if found := differences(case):
                self.complain("the result differs", "\n".join(found), case, story)
            self.ends["gone on with to the end", "equal" if not found else "DIFFERENT"] += 1
        self.runs += 1
        left = [path.name for path in (self.server.home / "tmp").iterdir() if not path.name.startswith(CACHES)]
        if left:
            self.complain("temporary files are left", str(left), case, story)
            shutil.rmtree(self.server.home / "tmp")
            (self.server.home / "tmp").mkdir()

    def disturbed(self, case: Case, kind: str, *, begin: bool):
        """Begins or goes on, and sends the signals of a kind at random times of an undisturbed run's length."""
        latest = 1.2 * case.reference_end.seconds
        times = sorted(self.draw.uniform(0, latest) for _ in KINDS[kind])
        signals = list(zip(times, KINDS[kind], strict=True))
        if begin:
            return case.begin(signals=signals)
        if self.draw.random() < 0.3 and (case.run_dir / "plan.json").exists():
            return self.server.run(["resume", case.run_dir], signals=signals)
        return case.go_on(signals=signals)

    @staticmethod
    def finished(case: Case) -> bool:
        """Whether the record says so."""
        record = case.run_dir / "record.json"
        return record.exists() and json.loads(record.read_text())["status"] == "done"

    def note(self, kind: str, end, case: Case, story: list[str], hurt: dict[str, str]) -> None:
        """Counts an end, and complains of one that nothing explains."""
        told = [file for file in hurt if f"{file}:" in end.text and ("not used" in end.text or end.code == 4)]
        if told and end.code == 4:
            self.ends[f"{hurt[told[0]]} of the only checkpoint", "exit 4, file named"] += 1
        elif not fits(kind, end.code, end.text):
            self.complain(f"{kind} does not explain exit {end.code}", end.text, case, story)
        else:
            self.ends[kind, f"exit {end.code}"] += 1
            for file in told:
                self.ends[f"{hurt[file]} of a checkpoint", "file named, older one used"] += 1
        silent = hurt and not told and kind == "left alone" and "nothing to do" not in end.text
        if silent and not list(case.run_dir.glob("checkpoints/*.damaged*")):
            self.complain(f"damage was not noticed: {hurt}", end.text, case, story)
        if told or kind == "left alone":
            hurt.clear()
        if end.survivors:
            self.complain(f"{end.survivors} processes outlived the run", end.text, case, story)
        if self.descriptors not in (-1, end.descriptors):
            self.complain(f"{end.descriptors} open files, {self.descriptors} before", end.text, case, story)
        self.descriptors = end.descriptors

    def complain(self, what: str, more: str, case: Case, story: list[str]) -> None:
        """Keeps the run's folder and its story."""
        kept = self.home / f"unexplained-{len(self.unexplained)}"
        shutil.copytree(case.folder, kept)
        (kept / "story.txt").write_text("\n\n".join([what, more, *story]), encoding="utf-8")
        self.unexplained.append(f"{what} ({kept / 'story.txt'})")
        print(f"UNEXPLAINED: {self.unexplained[-1]}\n{more[-1500:]}", flush=True)

    def table(self) -> str:
        """All ends."""
        rows = [f"| {what} | {how} | {count} |" for (what, how), count in sorted(self.ends.items())]
        return "\n".join(["| what was done | how it ended | times |", "|---|---|---|", *rows])


def main() -> int:
    """Goes on for so many minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--processes", action="store_true", help="some runs have two ranks; these are slow to start")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(home, given.seed, 0.2 if given.processes else 0.0)
    began = said = time.monotonic()
    while time.monotonic() < began + 60 * given.minutes:
        soak.cycle()
        if time.monotonic() > said + 10:
            said = time.monotonic()
            counts = f"{soak.runs} runs, {soak.server.trials} processes, {len(soak.cases)} recipes"
            print(f"{(said - began) / 60:5.1f} min: {counts}, {len(soak.unexplained)} unexplained", flush=True)
    soak.server.close()
    print(f"\n{soak.table()}\n\n{soak.runs} runs of {len(soak.cases)} recipes, {soak.server.trials} processes of "
          f"{soak.server.busy / soak.server.trials:.1f} s, {len(soak.unexplained)} unexplained ends")  # fmt: skip
    if soak.unexplained:
        print("\n".join(soak.unexplained))
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
