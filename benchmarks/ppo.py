"""`tunekit ppo` beside the last PPOTrainer that TRL had: same prompts, policy, reward model and number of answers.

    python3.11 -m venv ppo_venv
    ppo_venv/bin/pip install -r benchmarks/ppo_reference.txt
    python benchmarks/ppo.py --reference ppo_venv/bin/python [--seeds 2] [--episodes 768] [--values K] [--work FOLDER]

The policy is the embedded model after a `tunekit sft`, the reward model that after `tunekit reward` on the embedded
preferences; both are trained here. Then each side makes ``episodes`` answers to the prompts of the embedded
preferences, with the same batch, mini-batches, passes, learning rate, price of KL, discount, clipping and length of
answers; all weights are trained. Values are a model of their own that begins as the reward model, as TRL has it; with
``--values shared`` or ``separate`` tunekit's are another one. Two things differ: TRL does not clip gradients, and steps
its learning rate once a batch of answers.

Afterwards one script judges both policies: answers drawn to held-out prompts, scored by the reward model. Told are the
mean reward, the KL, and answers a second of CPU time, both sides on one thread: of `trainer.train()` alone for TRL, of
the whole run, with loading, an evaluation and saving, for tunekit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TEMPLATE = (  # without a line break after a turn: what the reward model reads last is the end of the answer
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PPO = {
    "lr": 3e-4, "batch_size": 64, "mini_batches": 4, "ppo_epochs": 4, "response_length": 24, "temperature": 1.0,
    "kl_coef": 0.05, "gamma": 1.0, "lam": 0.95, "missing_eos_penalty": 1.0, "heldout_samples": 4,
}  # fmt: skip


def tunekit(method: str, recipe: str, folder: Path, run: Path) -> float:
    """Runs a recipe in this process; returns its CPU seconds, loading of models included."""
    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check
    from tunekit.train.pipeline import Job
    from tunekit.train.pipeline import run as run_job

    document = override(
        parse(f"method: {method}\n{recipe}", f"{run.name}.yaml"), [f"output.dir={json.dumps(str(run))}"]
    )
    plan = resolve(check(document), folder / f"{run.name}.yaml", probe())
    began = time.process_time()
    run_job(Job(plan, recipe), Silent())
    return time.process_time() - began


def make_models(folder: Path) -> tuple[Path, Path]:
    """A policy that answers instructions passably, and a reward model: folders of whole models."""
    (folder / "bench.jinja").write_text(TEMPLATE, encoding="utf-8")
    common = f"model: {{name: 'builtin:tiny', chat_template: {folder / 'bench.jinja'}}}\n"
    train = "train: {epochs: 1, batch_size: 32, learning_rate: 5e-4, threads: 1, precision: fp32, save_every: never}\n"
    lively = "{path: 'builtin:preferences', format: prompt_completion, columns: {completion: chosen}, limit: 100}"
    sft = (
        common
        + train
        + f"data: {{train: [{{path: 'builtin:instructions', limit: 3000}}, {lively}], max_length: 128}}\n"
    )
    reward = (
        common + train + "data: {train: [{path: 'builtin:preferences'}], max_length: 128}\nreward: {centre: 0.01}\n"
    )
    for method, text in (("sft", sft), ("reward", reward)):
        if not (folder / method / "model").exists():
            tunekit(method, text, folder, folder / method)
    return folder / "sft" / "model", folder / "reward" / "model"


def prompts(folder: Path, policy: Path, count: int) -> str:
    """The data block of the runs; writes the same prompts as token ids for the reference."""
    from tunekit.core.progress import Silent
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check
    from tunekit.train.inputs import Inputs

    data = (
        f"data: {{train: [{{path: 'builtin:preferences', limit: {count}}}], max_length: 128, "
        "eval: [{path: 'builtin:preferences', split: held_out, limit: 128}]}\n"
    )
    text = f"method: ppo\nmodel: {{name: {policy}}}\n{data}ppo: {{reward: [{{kind: ended}}]}}\n"
    inputs = Inputs(check(parse(text, "prompts.yaml")).model_copy(), folder)
    prepared = inputs.prepare(Silent(), folder / "prompts")
    for split, name in (("train", "train"), ("eval", "heldout")):
        rows = prepared.dataset(split)
        lines = [json.dumps({"ids": list(ids)}) for ids in rows["input_ids"]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data


def reference(python: str, folder: Path, name: str, **changes: object) -> dict:
    """One run of the reference script."""
    config, result = folder / f"{name}.json", folder / f"{name}.result.json"
    config.write_text(
        json.dumps(changes | {"train": str(folder / "train.jsonl"), "heldout": str(folder / "heldout.jsonl")})
    )
    done = subprocess.run(
        [python, str(HERE / "ppo_reference.py"), str(config), str(result)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(result.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", required=True, help="python of the environment with TRL's PPOTrainer")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=768)
    parser.add_argument("--values", help="tunekit's ppo.value_model: shared, separate; otherwise the reward model")
    parser.add_argument("--work", type=Path, help="keep models and results here, and use those that are there")
    options = parser.parse_args()
    folder = (options.work or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    policy, reward = make_models(folder)
    data = prompts(folder, policy, options.episodes)
    added = json.loads((policy / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    stop = ids["<|im_end|>"]
    pad = next(number for number in ids.values() if number != stop)
    fixed = PPO | {"policy": str(policy), "reward": str(reward), "stop_id": stop, "pad_id": pad, "threads": 1}
    steps = PPO["mini_batches"]
    rows: dict[str, list[tuple[float, float, float]]] = {"TRL": [], "tunekit": []}
    before = None
    for seed in range(options.seeds):
        theirs = reference(options.reference, folder, f"trl-{seed}", **fixed, episodes=options.episodes, seed=seed)
        before = theirs["before"]["sampled"]
        after = theirs["after"]["sampled"]
        rows["TRL"].append((after["reward"], after["kl"], options.episodes / theirs["cpu_seconds"]))
        recipe = (
            f"model: {{name: {policy}}}\n{data}"
            f"train: {{epochs: 1, batch_size: {PPO['batch_size'] // steps}, learning_rate: {PPO['lr']}, "
            f"schedule: linear, warmup: 0, threads: 1, precision: fp32, save_every: never, "
            f"seed: {seed}, log_every: 16}}\n"
            f"eval: {{baseline: false, limit: 1}}\n"
            f"ppo: {{reward: [{{model: {reward}}}], generations: 1, max_new_tokens: {PPO['response_length']}, "
            f"rollout_steps: {steps}, passes: {PPO['ppo_epochs']}, beta: {PPO['kl_coef']}, "
            f"missing_end_penalty: {PPO['missing_eos_penalty']}, lam: {PPO['lam']}, value_coef: 0.1, "
            f"value_model: {options.values or reward}}}\n"
        )
        run = folder / f"tunekit-{seed}-{int(time.time())}"
        seconds = tunekit("ppo", recipe, folder, run)
        judged = reference(
            options.reference,
            folder,
            f"judge-{seed}",
            **(fixed | {"policy": str(run / "model"), "start": str(policy)}),
            episodes=0,
            seed=seed,
        )["before"]["sampled"]
        rows["tunekit"].append((judged["reward"], judged["kl"], options.episodes / seconds))
    print(f"held-out reward before: {before['reward']:.3f} (standard error {before['standard_error']:.3f})")
    for side, found in rows.items():
        rewards, kls, speeds = zip(*found, strict=True)
        told = ", ".join(f"{value:.3f}" for value in rewards)
        print(
            f"{side:8} reward {statistics.fmean(rewards):.3f} ({told}), KL {statistics.fmean(kls):.2f} nats an answer, "
            f"{statistics.fmean(speeds):.1f} answers a second"
        )


if __name__ == "__main__":
    main()
