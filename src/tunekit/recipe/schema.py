"""The recipe's blocks as frozen types. One YAML block is one class; unknown keys, wrong types and ranges are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag


class Block(BaseModel):
    """Base of every recipe block: frozen, strict about types, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _steps_or_fraction(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("a number of steps (1, 2, ...) or a fraction of the run (between 0 and 1)")
    return value


Every = Annotated[float, Field(gt=0), AfterValidator(_steps_or_fraction)]
Warmup = Annotated[float, Field(ge=0), AfterValidator(_steps_or_fraction)]
Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "clearml", "codecarbon", "dagshub", "dvclive", "flyte",
    "kubeflow", "neptune", "swanlab", "azure_ml",
]  # fmt: skip


class ModelBlock(Block):
    """Which model, and how it is loaded."""

    name: str = Field("builtin:tiny", min_length=1, description="Hub id, local folder, or builtin:<name>")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of the loaded weights; auto: float32, or bfloat16 where only an adapter is trained on a GPU",
    )
    tokenizer: str | None = Field(None, description="another tokenizer's Hub id or folder")
    new_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="added to the tokenizer; trained, and saved with the model or the adapter"
    )
    chat_template: str | None = Field(
        None, description="a Jinja file, or a built-in name such as chatml; default: the tokenizer's"
    )
    quantize: Any = Field(
        None, description="weights of 4 or 8 bits, on which an adapter is trained: {kind: bnb, bits: 4}, ..."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "auto",
        description="auto: tunekit's own, without padding, as flash_attention_*; sdpa and eager pad their batches",
    )


class SourceBlock(Block):
    """One source of rows."""

    path: str = Field(min_length=1, description="file, folder, glob, Hub data set id, or builtin:<part>")
    format: str = Field(
        "auto", description="chat, sharegpt, prompt_completion, alpaca, question_answer, text, ... or auto"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our field: their column (dots reach into nested values)"
    )
    weight: float = Field(
        1.0, gt=0, le=100, description="how often each row is seen in an epoch; 0.5 takes a seeded half"
    )
    limit: int | None = Field(None, ge=1, description="read only the first N rows")
    split: str | None = Field(None, description="split of a Hub data set or of builtin data")
    name: str | None = Field(None, description="configuration of a Hub data set")
    revision: str | None = Field(None, description="revision of a Hub data set")
    encoding: str = Field("utf-8", description="text encoding when it is not UTF-8, for example gbk")
    container: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow", "txt"] = Field(
        "auto", description="file type, when the suffix does not tell"
    )
    text_unit: Literal["line", "document"] = Field("line", description="for txt: one example a line, or a whole file")


class EvalSplit(Block):
    """Held-out rows taken from the training sources."""

    fraction: float | None = Field(None, gt=0, lt=1, description="this part of the rows, drawn with the seed")
    count: int | None = Field(None, ge=1, description="this many rows, drawn with the seed")


_SOURCES, _PART = "<sources>", "<part>"  # tags stand in pydantic's locations: no key of a recipe looks like them


def _eval_kind(value: Any) -> str:
    return _SOURCES if isinstance(value, (list, tuple)) else _PART


class DataBlock(Block):
    """Where the rows come from and how they become tokens."""

    train: tuple[SourceBlock, ...] = Field(min_length=1, description="sources, mixed by weight")
    eval: Annotated[
        Annotated[tuple[SourceBlock, ...], Tag(_SOURCES)] | Annotated[EvalSplit, Tag(_PART)], Discriminator(_eval_kind)
    ] = Field(
        EvalSplit(fraction=None, count=None), description="a list like train, or {fraction: 0.05}, or {count: 200}"
    )
    max_length: int = Field(2048, ge=8, le=4_194_304, description="longest example in tokens")
    overlong: Literal["truncate", "drop", "error"] = Field("truncate", description="what happens to longer examples")
    packing: bool = Field(
        False, description="fill rows of max_length with several examples, kept apart (in pretrain they follow on)"
    )
    loss_on: Literal["assistant", "last_turn", "all"] = Field("assistant", description="which text is trained")
    duplicates: Literal["keep", "drop"] = Field(
        "keep", description="exact duplicates of a rendered text within the training rows"
    )
    shuffle: bool = Field(True, description="draw rows in a seeded random order, anew each epoch")
    max_drop_rate: float = Field(0.05, ge=0, le=1, description="refuse the run when more rows than this are lost")
    streaming: bool = Field(False, description="read while training, for data larger than disk; needs train.max_steps")
    cache: bool = Field(True, description="keep prepared data for the next run")


class EarlyStopping(Block):
    """Stop when the evaluation loss no longer falls."""

    patience: int = Field(3, ge=1, description="evaluations without an improvement")
    min_delta: float = Field(0.0, ge=0, description="a smaller fall of the loss does not count")


class TrainBlock(Block):
    """The optimization."""

    epochs: float | None = Field(
        None, gt=0, le=10_000, description="passes over the data (default 1, unless max_steps)"
    )
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, in the place of epochs")
    batch_size: int = Field(
        32,
        ge=1,
        le=1_048_576,
        description="GLOBAL batch in examples (packed rows with data.packing), over ranks and accumulation",
    )
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="examples per device and forward pass; derived when left out; auto: as many as fit in memory"
    )
    learning_rate: float = Field(
        2e-4,
        gt=0,
        le=10,
        description="peak learning rate; default: what suits the method and what is trained, here LoRA in sft",
    )
    schedule: Literal["linear", "cosine", "constant", "cosine_with_min_lr", "inverse_sqrt", "polynomial"] = Field(
        "cosine", description="learning rate after the warm-up"
    )
    warmup: Warmup = Field(0.03, description="steps, or a fraction of the run")
    weight_decay: float = Field(0.0, ge=0, le=10, description="decoupled (AdamW); not on biases and norms")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="gradients are clipped to this norm")
    optimizer: Literal["adamw", "muon", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd", "lion_8bit"] = Field(
        "adamw", description="adamw is torch's fused one; those of 8 bits need bitsandbytes"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of the gradients")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of their squares")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="added to the divisor")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the forward and backward pass"
    )
    kernels: Literal["auto", "none", "liger"] = Field(
        "auto", description="fused norms, rotary embeddings and MLPs; auto: Liger's, on a GPU where they are installed"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: for packed pretraining of more than some minutes, never for sft"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, about 30 % slower")
    neftune_alpha: float | None = Field(None, gt=0, description="noise on embeddings (NEFTune, arXiv 2310.05914)")
    group_by_length: bool = Field(
        False,
        description="batches of similar length: less padding for a model that cannot do without (see docs/speed.md)",
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of everything random in the run")
    log_every: int = Field(10, ge=1, description="steps")
    save_every: Every | Literal["never"] | None = Field(
        None,
        description="steps between checkpoints, or a fraction of the run; one comes at the end; default 500; or never",
    )
    keep_checkpoints: int = Field(2, ge=1, description="older ones are deleted")
    early_stopping: EarlyStopping | None = Field(None, description="end when the evaluation loss no longer falls")
    keep_best: bool = Field(False, description="finish with the checkpoint of the lowest evaluation loss")
    workers: int = Field(0, ge=0, le=256, description="processes that collate batches")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads per process; default: the cores, shared")
    trackers: tuple[Tracker, ...] = Field((), description="tensorboard, wandb, mlflow, trackio, ...")
    extra: dict[str, Any] = Field(default_factory=dict, description="any other field of transformers.TrainingArguments")


class EvalBlock(Block):
    """What is measured on the held-out rows, during and after training."""

    every: Every | None = Field(None, description="evaluation loss each so many steps, or fraction of the run")
    batch_size: int = Field(32, ge=1, description="examples per device and forward pass")
    baseline: bool = Field(True, description="measure the model before training too, and compare")
    generate: bool = Field(False, description="generate answers for the held-out prompts and score them")
    metrics: tuple[str, ...] = Field(("exact_match",), description="scores of the generated answers")
    max_new_tokens: int = Field(64, ge=1, le=65_536, description="longest generated answer in tokens")
    limit: int | None = Field(
        None, ge=1, description="at most so many held-out rows, drawn at random, the same in every run"
    )
    samples: int = Field(8, ge=0, le=1000, description="generations kept side by side for the report")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the intervals")


class LaunchBlock(Block):
    """On how many processes."""

    processes: int | Literal["auto"] = Field(1, description="number of processes, or auto: one a GPU")
    strategy: Literal["ddp"] = Field("ddp", description="how the processes share the work")


class GuardsBlock(Block):
    """What happens when training goes wrong."""

    on_divergence: Literal["warn", "stop", "rollback"] = Field(
        "warn",
        description="at a sudden rise of the loss; rollback: back to the last checkpoint, and past those batches. "
        "A loss or gradient that is not finite always ends the run, or is rolled back",
    )
    watchdog: int = Field(
        600, ge=2, description="seconds without a sign of life from one of several processes until the run is ended"
    )


class OutputBlock(Block):
    """Where the run is written."""

    dir: str | None = Field(None, min_length=1, description="run folder; default: runs/<recipe's name>, numbered")


class Recipe(Block):
    """A whole recipe. The method's own block is a further field, named like the method (see `recipe.load`)."""

    method: str = Field(description="the training method")
    model: ModelBlock = Field(default_factory=ModelBlock, description="which model, and how it is loaded")
    data: DataBlock = Field(description="where the rows come from and how they become tokens")
    train: TrainBlock = Field(default_factory=TrainBlock, description="the optimization")
    eval: EvalBlock = Field(default_factory=EvalBlock, description="what is measured on the held-out rows")
    launch: LaunchBlock = Field(default_factory=LaunchBlock, description="on how many processes")
    guards: GuardsBlock = Field(default_factory=GuardsBlock, description="what happens when training goes wrong")
    output: OutputBlock = Field(default_factory=OutputBlock, description="where the run is written")

    @property
    def options(self) -> Any:
        """The method's own block."""
        return getattr(self, self.method)

    @property
    def adapter_block(self) -> Any:
        """The adapter's block, or None for full fine-tuning."""
        return getattr(self, "adapter", None)
