"""Models of an evaluation by every name that they have, and what they are compared with."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from tunekit.core.errors import MachineError, UserError
from tunekit.exam.models import baseline_of, subject
from tunekit.model.names import TINY

SMALL = {
    "data.max_length": 128,
    "data.eval.fraction": 0.25,
    "train.max_steps": 2,
    "train.batch_size": 4,
    "train.threads": 1,
    "eval.baseline": False,
}
QUIET = {"forgetting": {"check": False}, "contamination": {"check": False}}
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def offline(monkeypatch):
    """No Hub: waiting for a network that is not there takes a minute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where runs and their prepared data lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def train(place, questions):
    """Trains by the command line; gives the run's folder."""

    def run(name, **sets):
        from tunekit.cli.app import app

        given = SMALL | {"output.dir": str(place / name)} | {key.replace("__", "."): v for key, v in sets.items()}
        words = [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        model = sets.get("model__name", "builtin:tiny")
        text = f"method: sft\nmodel: {{name: {json.dumps(model)}}}\ndata: {{train: [{{path: {questions}}}]}}\n"
        (place / f"{name}.yaml").write_text(text)
        home = {"HF_HOME": str(place / "home")}
        done = CliRunner().invoke(app, ["sft", str(place / f"{name}.yaml"), "--quiet", *words], env=home)
        assert done.exit_code == 0, done.output
        return place / name

    return run


@pytest.fixture(scope="module")
def lora(train):
    return train("lora", adapter={"kind": "lora"})


@pytest.fixture(scope="module")
def full(train):
    """All weights, with two tokens that the base does not know."""
    return train("full", adapter=None, model__new_tokens=["<|one|>", "<|two|>"])


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model: of fewer tokens, cut in another way, with another template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(["<s>", "</s>", *letters])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    place = tmp_path_factory.mktemp("other")
    for name, template in (("bare", None), ("templated", TEMPLATE)):
        tokenizer.chat_template = template
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def test_a_run_and_its_folder_are_one_model(job, lora, monkeypatch):
    """Both know the run: its held-out rows, its training data, the model that it began with."""
    record = job(model=str(lora), forgetting={"check": False}, baseline="base").run()
    assert (record.models.tuned.kind, record.models.baseline.name) == ("lora adapter", "builtin:tiny")
    assert record.tasks[0].n == 10 and record.tasks[0].difference is not None
    assert record.contamination.checked == 10
    monkeypatch.chdir(lora / "model")
    for number, name in enumerate((str(lora / "model"), ".")):
        again = job(model=name, target=f"again{number}", forgetting={"check": False}).run()
        assert [task.tuned for task in again.tasks] == [task.tuned for task in record.tasks]


def test_a_whole_model_s_base_gets_the_rows_of_new_tokens(job, full, questions, tmp_path):
    """The base knows no such ids; asked in the model's words it would read beyond its embeddings."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()][:6]
    changed = [row | {"instruction": f"<|one|> {row['instruction']} <|two|>"} for row in rows]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    record = job(model=str(full), data=[{"path": str(tmp_path / "new.jsonl")}], contamination={"check": False},
                 forgetting={"texts": 2, "tokens": 8}).run()  # fmt: skip
    assert record.models.baseline.kind == "base" and record.tasks[0].difference is not None
    assert record.forgetting[0].difference is not None


def test_a_base_that_is_not_that_of_the_training_is_refused(job, train, place, tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "base")
    run = train("moved", adapter=None, model__name=str(tmp_path / "base"))
    weights = tmp_path / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="is not the one that this was trained on"):
        job(model=str(run), **QUIET).run()
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="there is no model folder"):
        job(model=str(run), **QUIET).run()
    work = job(model=str(run), baseline=None, **QUIET)
    monkeypatch.setenv("HF_HOME", str(place / "home"))  # where the run's data is kept: it needs no base to be read
    assert work.run().tasks[0].n == 10


def test_a_quantized_base_is_loaded_as_it_was_trained_on(job, train):
    pytest.importorskip("bitsandbytes")
    run = train("nf4", adapter={"kind": "lora"}, model__quantize={"kind": "bnb", "bits": 4})
    four = job(model=str(run), **QUIET).run().tasks[0]
    whole = job(model=str(run), target="whole", engine={"quantized": False}, **QUIET).run().tasks[0]
    assert four.base.value != whole.base.value and four.tuned.value != whole.tuned.value


def test_fresh_weights_have_no_baseline(job, questions):
    record = job(model="builtin:random", data=[{"path": str(questions)}], limit=3, **QUIET).run()
    assert record.models.baseline is None and record.tasks[0].n == 3


@pytest.mark.parametrize("name", ["lroa", "loar"])
def test_a_folder_that_is_not_there_gets_the_nearest(lora, name, monkeypatch, offline):
    """A short relative name may be of the Hub; where that has none, the folder was meant."""
    monkeypatch.chdir(lora.parent.parent)
    with pytest.raises(UserError, match="is neither a folder nor a model of the Hub") as refused:
        _ = subject(f"{lora.parent.name}/{name}").tokenizer
    assert refused.value.fix == f"did you mean '{lora.parent.name}/lora'?"


def test_a_hub_id_that_cannot_be_had(offline):
    with pytest.raises(MachineError, match="'no-one/nothing' cannot be loaded from the Hub"):
        _ = subject("no-one/nothing").tokenizer


def test_a_run_without_a_model_says_how_to_go_on(lora, tmp_path):
    shutil.copytree(lora, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(UserError, match="the run has no finished model") as refused:
        subject(str(tmp_path / "run"))
    assert refused.value.fix == f"finish the run: tunekit resume {tmp_path / 'run'}"


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_damaged_file_of_weights(job, request, tmp_path, questions, kind, listed):
    """With a manifest its hash tells; somebody else's folder has none, and safetensors tells."""
    shutil.copytree(request.getfixturevalue(kind) / "model", tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    if not listed:
        (tmp_path / "model" / "MANIFEST.json").unlink()
    with pytest.raises(MachineError, match="not as it was saved" if listed else "the weights cannot be read"):
        job(model=str(tmp_path / "model"), data=[{"path": str(questions)}], baseline=None, **QUIET).run()


def test_an_adapter_without_a_tokenizer_on_a_base_that_is_gone(lora, tmp_path, offline):
    shutil.copytree(lora / "model", tmp_path / "model")
    for path in [*(tmp_path / "model").glob("*token*"), tmp_path / "model" / "MANIFEST.json"]:
        path.unlink()
    config = tmp_path / "model" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "no-one/nothing"}))
    with pytest.raises(MachineError, match="'no-one/nothing' cannot be loaded from the Hub"):
        _ = subject(str(tmp_path / "model")).tokenizer


def test_another_tokenizer_is_compared_by_bytes_and_not_by_tokens(job, lora, other):
    """The run's rows are rendered anew for it: ids of the run's tokenizer would be beyond its embeddings."""
    tasks = [{"kind": "perplexity", "units": ["token", "byte"]}, {"kind": "generation", "max_new_tokens": 4}]
    work = job(model=str(lora), baseline=str(other / "templated"), tasks=tasks, forgetting={"texts": 2, "tokens": 8})
    tokens, byte, answers = work.run().tasks
    assert tokens.base is not None and (tokens.difference, tokens.verdict) == (None, None)
    assert byte.metric == "bits_per_byte" and byte.difference.value == pytest.approx(byte.tuned.value - byte.base.value)
    assert answers.difference is not None and answers.n == 10


def test_the_base_s_own_text_is_not_measured_in_other_tokens(job, other, questions):
    """Its ids mean other words to the model, or none: what it finds of them is no forgetting."""
    record = job(model=str(other / "templated"), baseline="builtin:tiny", data=[{"path": str(questions)}], limit=4,
                 tasks=[{"kind": "perplexity"}], contamination={"check": False},
                 forgetting={"data": [{"path": str(questions)}], "texts": 2, "tokens": 8}).run()  # fmt: skip
    assert "the base's own text" not in [task.name for task in record.forgetting or ()]


def test_a_model_without_a_template_is_named(job, lora, other, questions, tmp_path):
    for given in ({"model": str(other / "bare"), "data": [{"path": str(questions)}]},
                  {"model": str(lora), "baseline": str(other / "bare")}):  # fmt: skip
        with pytest.raises(UserError, match="bare' has no chat template, and the rows are conversations") as refused:
            job(**given, **QUIET).run()
        assert "model.chat_template" not in refused.value.fix  # a key of training
    (tmp_path / "plain.txt").write_text("one text\nand another one\n")
    plain = job(model=str(other / "bare"), data=[{"path": str(tmp_path / "plain.txt")}], **QUIET).run()
    assert plain.tasks[0].n == 2


@pytest.mark.parametrize("name", ["none", "null", None])
def test_no_baseline(name):
    assert baseline_of(subject("builtin:tiny"), name) is None


def test_a_baseline_that_is_not_known():
    with pytest.raises(UserError, match="it is not known what 'builtin:tiny' was trained from"):
        baseline_of(subject("builtin:tiny"), "base")
    assert baseline_of(subject("builtin:tiny"), "auto") is None
