"""What a run leaves is plain: transformers and peft load it without tunekit, and it gives the same logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROMPT = [5, 8, 13, 21, 34, 55, 89, 144]
LOADERS = {
    None: "model = AutoModelForCausalLM.from_pretrained(folder)",
    "lora": "model = AutoPeftModelForCausalLM.from_pretrained(folder)",
}
SCRIPT = """\
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from peft import AutoPeftModelForCausalLM
import torch
folder, prompt, target = sys.argv[1], [int(i) for i in sys.argv[2].split(",")], sys.argv[3]
{load}
assert not any(name.split(".")[0] == "tunekit" for name in sys.modules)
with torch.no_grad():
    torch.save(model.eval()(torch.tensor([prompt])).logits, target)
"""


@pytest.fixture(scope="module")
def trained(plan_of, session_of, tmp_path_factory):
    """Saved folders of a full and a LoRA run of three steps, with the logits of the trainer's own model."""
    import torch

    base = tmp_path_factory.mktemp("base") / "base"
    session, trainer = session_of(plan_of())
    trainer.model.save_pretrained(base)
    session.inputs.tokenizer.save_pretrained(base)
    found = {}
    for kind in LOADERS:
        adapter = {"kind": "lora", "r": 4} if kind else None
        plan = plan_of(model__name=str(base), adapter=adapter, train__max_steps=3)
        session, trainer = session_of(plan)
        session._train(trainer)
        session._save(trainer)
        with torch.no_grad():
            logits = trainer.model.eval()(torch.tensor([PROMPT])).logits
        found[kind] = Path(plan.run_dir) / "model", logits, session.inputs
    return found


@pytest.mark.parametrize("kind", LOADERS)
def test_it_loads_without_tunekit_and_gives_the_same_logits(kind, trained, tmp_path, note):
    import torch

    folder, logits, _ = trained[kind]
    prompt, target = ",".join(map(str, PROMPT)), tmp_path / "logits.pt"
    script = SCRIPT.format(load=LOADERS[kind])
    command = [sys.executable, "-c", script, str(folder), prompt, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    difference = float((torch.load(target) - logits).abs().max())
    note(f"artefact {kind or 'full'}: largest difference of a logit {difference:.1e}")
    assert difference <= 1e-6


@pytest.mark.parametrize("kind", LOADERS)
def test_generation_stops_at_the_end_of_a_turn(kind, trained):
    from transformers import AutoTokenizer, GenerationConfig

    folder, _, inputs = trained[kind]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert inputs.turn_end == end
    config = GenerationConfig.from_pretrained(folder)
    assert end in (config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    assert tokenizer.chat_template == inputs.tokenizer.chat_template
    assert not list(folder.rglob("training_args.bin"))
