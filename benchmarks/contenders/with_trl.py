"""TRL's SFTTrainer on the work, with a clock; the two contenders of TRL differ in the settings only."""

from __future__ import annotations

from typing import Any

import common


def train(job: common.Job, settings: dict[str, Any]) -> None:
    """Trains with SFTConfig's defaults and ``settings``, and writes the result."""
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = common.Clock()
    seen = {"tokens": 0}

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step(seen["tokens"])
            seen["tokens"] = 0

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            seen["tokens"] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            clock.labelled += int((inputs["labels"][:, 1:] >= 0).sum())
            return super().training_step(model, inputs, *args, **kwargs)

    facts = job.facts
    peft = None
    if job.adapter:
        from peft import LoraConfig

        peft = LoraConfig(**common.LORA)
    wanted = {
        "output_dir": str(job.out / "checkpoints"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": facts["batch_size"],
        "learning_rate": facts["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_length": facts["max_length"],
        "seed": facts["seed"],
        "save_strategy": "no",
        "use_cpu": True,  # without it SFTConfig refuses a machine that has no GPU
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = Counting(
        model=job.model,
        args=SFTConfig(**(wanted | settings)),
        train_dataset=load_dataset("json", data_files=job.train, split="train", cache_dir=str(job.out / "cache")),
        peft_config=peft,
        callbacks=[Steps()],
    )
    trainer.train()
    trainer.save_model(str(job.out / "model"))
    common.write(job, clock.result())
