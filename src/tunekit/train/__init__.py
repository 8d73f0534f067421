"""Training: the pipeline that joins the rooms, the arguments, the trainer's mixin, checkpoints, and the launcher."""
