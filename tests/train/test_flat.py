"""Packed, unpacked and padded train alike: the same first step, on the same tokens, through the whole trainer."""

from __future__ import annotations

import pytest

EXPERTS = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 64, "num_local_experts": 4, "max_position_embeddings": 256,
}  # fmt: skip
WAYS = {
    "flat": {},
    "flat, packed": {"data__packing": True},
    "padded": {"model__attention": "sdpa"},
    "padded, packed": {"model__attention": "sdpa", "data__packing": True},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory, write_rows, talk_of):
    """Documents of 5 to 60 words."""
    said = [talk_of(number)["messages"][1]["content"] for number in range(40)]
    rows = [{"text": " ".join(said[number : number + 1 + number % 7])} for number in range(20)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def data_of(talks, texts):
    """All rows of a method in one global batch, however they are packed."""
    return {
        "sft": {"data__train": [{"path": str(talks)}], "train__batch_size": 32, "train__micro_batch_size": 8},
        "pretrain": {"data__train": [{"path": str(texts)}], "train__batch_size": 32, "train__micro_batch_size": 8},
    }


def stepped(trainer):
    """Loss and gradient norm of the first step."""
    trainer.train()
    entry = trainer.state.log_history[0]
    return entry["loss"], float(entry["grad_norm"])


@pytest.mark.parametrize(("method", "adapter"), [("sft", None), ("sft", {"kind": "lora", "r": 4}), ("pretrain", None)])
def test_packed_and_padded_and_neither_take_the_same_first_step(method, adapter, plan_of, session_of, data_of, note):
    """Pretraining joins documents that see each other, so there it is the way that may differ, not the packing."""
    found, positions = {}, {}
    for way, sets in WAYS.items():
        plan = plan_of(method, **data_of[method], **sets, adapter=adapter, train__precision="fp32")
        trainer = session_of(plan)[1]
        assert bool(trainer.padded_because) is ("sdpa" in sets.values()), trainer.padded_because
        found[way] = stepped(trainer)
        positions[way] = trainer.positions_seen, trainer.tokens_seen, trainer.trained_seen
    note(f"{method}, {adapter}: {found}; (positions, tokens, trained) {positions}")
    assert found["padded"] == pytest.approx(found["flat"], rel=1e-5)
    assert found["padded, packed"] == pytest.approx(found["flat, packed"], rel=1e-5)
    if method == "sft":
        assert found["flat, packed"] == pytest.approx(found["flat"], rel=1e-5)
    for way, (seen, tokens, _) in positions.items():
        assert seen == tokens if way.startswith("flat") else seen > tokens
    assert positions["flat"][2] == positions["padded"][2]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("method", ["sft", "pretrain"])
def test_as_many_targets_as_labels_are_counted(method, packing, plan_of, session_of, data_of):
    """The sum of losses is divided by what Trainer counts: they must be the same tokens."""
    from tunekit.kernels.segments import flatten, label_positions

    plan = plan_of(method, **data_of[method] | {"train__micro_batch_size": 4}, data__packing=packing)
    trainer = session_of(plan)[1]
    batches = list(trainer.get_train_dataloader())
    assert len(batches) > 1
    for batch in batches:
        counted = int(trainer._get_num_items_in_batch([batch], "cpu"))
        flat, padded = flatten(batch), label_positions(batch["labels"])
        assert counted == len(flat["targets"]) == len(padded["targets"]) == int((batch["labels"] >= 0).sum())
        assert sorted(flat["targets"].tolist()) == sorted(padded["targets"].tolist())


def test_evaluation_is_the_same_flat_and_padded(plan_of, session_of, data_of, write_rows, talk_of, tmp_path):
    held = write_rows(tmp_path / "held.jsonl", [talk_of(number) for number in range(100, 109)])
    found = {}
    for way in ("flat", "padded"):
        sets = WAYS[way] | data_of["sft"] | {"data__eval": [{"path": str(held)}]}
        trainer = session_of(plan_of(**sets, train__precision="fp32"))[1]
        found[way] = trainer.evaluate()["eval_loss"]
    assert found["flat"] == pytest.approx(found["padded"], rel=1e-6)


VIRTUAL = {
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_run_padded_and_it_is_said(kind, plan_of, session_of, data_of, note):
    """The loss is transformers' own on the labels; virtual tokens stand before the text and have none."""
    import peft
    import torch

    from tunekit.model.load import load_model
    from tunekit.train.causal import causal_trainer

    plan = plan_of(**data_of["sft"], train__precision="fp32")
    session, trainer = session_of(plan)
    name, options = VIRTUAL[kind]
    config = getattr(peft, name)(task_type="CAUSAL_LM", **options)
    torch.manual_seed(0)
    model = peft.get_peft_model(load_model(plan).model, config)
    ours = causal_trainer(plan, model, session.inputs.tokenizer, trainer.train_dataset, None, session.folder.staging)
    assert "virtual tokens" in ours.padded_because
    batch = next(iter(trainer.get_train_dataloader()))
    assert ours.positions_of(batch) == batch["input_ids"].numel()
    model.eval()
    loss = ours.compute_loss(model, dict(batch))
    loss.backward()
    norm = gradient_norm(model)
    model.zero_grad()
    mask = (torch.arange(batch["input_ids"].shape[1]) < batch["tokens"][:, None]).long()
    theirs = model(input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"], use_cache=False).loss
    theirs.backward()
    note(f"{kind}: {float(loss.detach())}, transformers {float(theirs.detach())}")
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert norm == pytest.approx(gradient_norm(model), rel=1e-5)


def gradient_norm(model):
    return sum(float(each.grad.double().square().sum()) for each in model.parameters() if each.grad is not None) ** 0.5


@pytest.fixture(scope="module")
def experts(plan_of, session_of, tmp_path_factory):
    """A folder with a mixture of experts that trains its router, its share of the loss large enough to see."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    session = session_of(plan_of())[0]
    folder = tmp_path_factory.mktemp("experts") / "model"
    torch.manual_seed(0)
    router = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    config = AutoConfig.for_model("mixtral", **EXPERTS, **router, vocab_size=len(session.inputs.tokenizer))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.mul_(30)
    model.save_pretrained(folder)
    session.inputs.tokenizer.save_pretrained(folder)
    return folder


def of_transformers(folder, batch):
    """Loss and gradient norm of the model's own forward pass, with its mask."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    mask = (torch.arange(batch["input_ids"].shape[1]) < batch["tokens"][:, None]).long()
    loss = model(input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"], use_cache=False).loss
    loss.backward()
    return float(loss.detach()), gradient_norm(model)


@pytest.mark.parametrize("way", ["flat", "flat, packed", "padded"])
def test_the_router_loss_of_experts_is_that_of_the_real_tokens(way, experts, plan_of, session_of, data_of, note):
    sets = {"model__name": str(experts), "train__precision": "fp32"}
    sets |= data_of["sft"] | {"train__micro_batch_size": 32}
    batch = next(iter(session_of(plan_of(**sets, model__attention="sdpa"))[1].get_train_dataloader()))
    expected = of_transformers(experts, batch)
    trainer = session_of(plan_of(**sets | WAYS[way]))[1]
    assert bool(trainer.padded_because) is (way == "padded"), trainer.padded_because
    found = stepped(trainer)
    note(f"{way}: {found}, transformers {expected}")
    assert found == pytest.approx(expected, rel=1e-5)
