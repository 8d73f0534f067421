"""TRL's SFTTrainer with settings as options: group_by_length, packing, checkpointing (true or false), threads."""

from __future__ import annotations

import common
import with_trl


def main() -> None:
    job = common.job()
    import torch

    if "threads" in job.options:
        torch.set_num_threads(int(job.options["threads"]))
    settings = {"gradient_checkpointing": job.on("checkpointing"), "bf16": job.precision == "bf16"}
    if job.on("group_by_length"):
        settings["train_sampling_strategy"] = "group_by_length"
    if job.on("packing"):
        settings |= {"packing": True, "per_device_train_batch_size": job.packed_batch()}
    with_trl.train(job, settings)


if __name__ == "__main__":
    main()
