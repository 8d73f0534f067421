"""The cause of a loss or gradient that is not finite: planted, and then found and named."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest

from tunekit.data.ledger import Ledger
from tunekit.train import diagnose
from tunekit.train.diagnose import Cause, find_cause

LORA = {"kind": "lora", "r": 4, "alpha": 8}


@dataclass
class Scene:
    """A trainer, the micro-batches of a step, and the places of their rows."""

    trainer: Any
    batches: list
    ledger: Ledger
    passes: int = 0

    @property
    def model(self):
        return self.trainer.model

    def where(self, number):
        return str(self.ledger[number].origin)

    def examples(self):
        """(tokens, places) of each example of the step."""
        for batch in self.batches:
            for ids, size, rows in zip(batch["input_ids"], batch["tokens"], batch["rows"]):
                yield ids[:size].tolist(), tuple(self.where(n) for n in rows.tolist() if n >= 0)

    def token_in(self, count):
        """A token that stands in ``count`` examples of the step, and the places of these."""
        seen = Counter(token for ids, _ in self.examples() for token in set(ids))
        token = min(token for token, number in seen.items() if number == count)
        return token, sorted(place for ids, places in self.examples() if token in ids for place in places)

    def find(self):
        plain = self.trainer.local_loss

        def counted(*args):
            self.passes += 1
            return plain(*args)

        self.trainer.local_loss = counted
        cause = find_cause(self.trainer, self.batches, self.where)
        del self.trainer.local_loss
        return cause


@pytest.fixture
def scene(plan_of, session_of):
    """The first step of a run on the talks: 8 rows in micro-batches of 8, if nothing else is asked for."""

    def build(**sets):
        plan = plan_of(**({"train__batch_size": 8, "train__micro_batch_size": 8} | sets))
        session, trainer = session_of(plan)
        batches = list(islice(iter(trainer.get_train_dataloader()), plan.accumulation))
        return Scene(trainer, batches, Ledger.load(session.prepared.ledger_path))

    return build


def documents(inputs):
    """The documents of a flat row as rows again, filled up with -1."""
    import torch

    if len(inputs["input_ids"]) > 1:
        return inputs["input_ids"]
    starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()[1:]
    return torch.nn.utils.rnn.pad_sequence(inputs["input_ids"][0].tensor_split(starts), True, -1)


def breaks(scene, module, when, spoil=None):
    """Makes what ``module`` puts out not finite in every pass on a batch of which ``when(its documents)`` holds."""
    seen = {}
    scene.model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)

    def hook(_, args, output):
        if not when(documents(seen)):
            return None
        if spoil is not None:
            return spoil(args, output)
        return (output[0] * float("nan"), *output[1:]) if isinstance(output, tuple) else output * float("nan")

    module.register_forward_hook(hook)


def nan_behind(args, output):
    """The same output; but the slope of the root at 0 is infinite, and infinity times 0 is nan."""
    return output + 0 * (0 * args[0]).sqrt().sum()


def poison(parameter, *index):
    import torch

    with torch.no_grad():
        parameter[index] = float("nan")


def test_weights_that_were_broken_before_are_the_models_fault(scene):
    here = scene()
    poison(here.model.model.layers[1].mlp.up_proj.weight, 3, 5)
    cause = here.find()
    assert cause.parameter == "model.layers.1.mlp.up_proj.weight"
    assert (cause.module, cause.backward) == ("model.layers.1.mlp.up_proj (Linear)", False)
    assert cause.all_rows and not cause.rows and cause.came_again
    assert here.passes == 8 + 1
    assert cause.summary() == (
        "the weights were broken before this step: not all values of model.layers.1.mlp.up_proj.weight are finite; "
        "the first module with an output that is not finite is model.layers.1.mlp.up_proj (Linear); "
        "every row that was tried fails by itself: the model is at fault, not the data"
    )
    assert [problem.what for problem in cause.problems()] == cause.summary().split("; ")


@pytest.mark.parametrize(("count", "micro"), [(1, 8), (2, 8), (1, 2), (2, 2), (1, 1)])
def test_a_poisoned_token_is_named_with_exactly_the_rows_that_hold_it(count, micro, scene):
    here = scene(train__micro_batch_size=micro)
    assert len(here.batches) == 8 // micro
    token, places = here.token_in(count)
    poison(here.model.get_input_embeddings().weight, token)
    cause = here.find()
    assert sorted(cause.rows) == places and len(places) == count and not cause.all_rows
    assert all(f"row {place} alone makes the loss nan" in cause.culprits for place in places)
    assert cause.tokens == (token,)
    assert cause.texts == (here.trainer.processing_class.convert_ids_to_tokens(token),)
    assert f"the embedding of token {token} ({cause.texts[0]!r}) is not finite" in cause.summary()
    assert cause.module == "model.embed_tokens (Embedding)"
    # one pass of each micro-batch, two of each halving, one to look at the module, and some to find a row that is sound
    assert here.passes <= 8 // micro + count * 2 * math.ceil(math.log2(micro)) + 1 + count + 1


def test_a_module_that_breaks_at_a_certain_token_is_named_with_the_row(scene):
    here = scene()
    token, places = here.token_in(1)
    breaks(here, here.model.model.layers[1].mlp, lambda ids: (ids == token).any())
    cause = here.find()
    assert (cause.rows, cause.module, cause.backward) == (tuple(places), "model.layers.1.mlp (LlamaMLP)", False)
    assert cause.parameter is None and cause.gradient is None and not cause.tokens


def test_a_mask_of_minus_infinity_is_not_taken_for_the_fault(scene):
    import torch

    here = scene(model__attention="sdpa")
    attention = here.model.model.layers[1].self_attn

    def mask(_, args, kwargs):
        size = kwargs["hidden_states"].shape[1]
        return args, kwargs | {"attention_mask": torch.full((1, 1, size, size), -torch.inf).triu(1)}

    attention.register_forward_pre_hook(mask, with_kwargs=True)
    assert not here.find().came_again
    breaks(here, attention, lambda ids: True)
    assert here.find().module == "model.layers.1.self_attn (LlamaAttention)"


def test_a_module_that_was_given_what_is_not_finite_is_not_blamed(scene):
    here = scene()
    layer = here.model.model.layers[1]
    layer.mlp.register_forward_pre_hook(lambda _, args: (args[0] * float("nan"),))  # as if the layer had done it
    assert here.find().module == "model.layers.1 (LlamaDecoderLayer)"


@pytest.mark.parametrize("adapter", [None, LORA])
def test_a_broken_head_is_called_so(adapter, scene):
    here = scene(adapter=adapter)
    poison(here.model.get_output_embeddings().weight, 0, 0)
    cause = here.find()
    assert cause.parameter == "lm_head.weight"
    assert cause.module == "the head or the loss of LlamaForCausalLM"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_that_breaks_in_one_module_is_named_with_the_row(checkpointing, scene):
    here = scene(train__gradient_checkpointing=checkpointing)
    token, places = here.token_in(1)
    breaks(here, here.model.model.layers[1].mlp.down_proj, lambda ids: (ids == token).any(), nan_behind)
    cause = here.find()
    assert cause.rows == tuple(places)
    assert cause.culprits == (f"row {places[0]} alone makes the gradient norm nan",)
    assert (cause.module, cause.backward) == ("model.layers.1.mlp.down_proj (Linear)", True)
    assert cause.gradient == "model.layers.1.mlp.up_proj.weight"  # down_proj's own is whole: only its input's is not
    assert "the first module that passes back a gradient that is not finite is model.layers.1" in cause.summary()


def test_of_modules_that_read_one_tensor_the_broken_one_is_named(scene):
    here = scene()
    breaks(here, here.model.model.layers[0].self_attn.v_proj, lambda ids: True, nan_behind)  # q and k read the same
    assert here.find().module == "model.layers.0.self_attn.v_proj (Linear)"


def test_a_loss_that_breaks_only_in_its_gradient_is_not_blamed_on_the_layers(scene):
    here = scene()
    plain = here.trainer.local_loss
    here.trainer.local_loss = lambda *args: (loss := plain(*args)) + 0 * (0 * loss).sqrt()
    cause = here.find()
    assert (cause.module, cause.backward) == ("the head or the loss of LlamaForCausalLM", True)


@pytest.mark.parametrize("kind", ["inf", "nan"])
def test_a_single_parameters_gradient_is_named(kind, scene):
    here = scene()
    parameter = here.model.model.layers[0].post_attention_layernorm.weight
    parameter.register_hook(lambda gradient: gradient * float(kind))
    cause = here.find()
    assert cause.gradient == "model.layers.0.post_attention_layernorm.weight"
    assert cause.all_rows and cause.module is None and cause.parameter is None
    assert f"a gradient that is not finite is {cause.gradient}" in cause.summary()


@pytest.mark.parametrize(
    ("part", "parameter", "module"),
    [
        ("lora_A.default", "model.layers.1.self_attn.q_proj.lora_A.default.weight", "q_proj.lora_A.default (Linear)"),
        ("base_layer", "model.layers.1.self_attn.q_proj.weight", "q_proj (Linear)"),
    ],
)
def test_modules_beside_an_adapter_have_the_names_of_the_model(part, parameter, module, scene):
    here = scene(adapter=LORA)
    projection = here.model.get_base_model().model.layers[1].self_attn.q_proj
    poison(projection.get_submodule(part).weight, 0, 0)
    cause = here.find()
    assert (cause.parameter, cause.module) == (parameter, f"model.layers.1.self_attn.{module}")


def test_with_an_adapter_the_row_of_a_broken_gradient_is_found(scene):
    here = scene(adapter=LORA, train__gradient_checkpointing=True)
    token, places = here.token_in(2)
    layer = here.model.get_base_model().model.layers[0].mlp.down_proj
    breaks(here, layer, lambda ids: (ids == token).any(), nan_behind)
    cause = here.find()
    assert sorted(cause.rows) == places and len(cause.culprits) == 2
    assert cause.module == "model.layers.0.mlp.down_proj (Linear)" and cause.backward


def test_a_fault_that_does_not_come_again_is_said_to(scene):
    here = scene(train__micro_batch_size=2)
    cause = here.find()
    assert not cause.came_again and not cause.rows and not cause.all_rows
    assert cause.summary() == "it did not come again when the same rows were run once more"
    assert here.passes == 1 + 4  # the first row, and each micro-batch


def test_the_norm_is_that_of_the_steps_mean(scene):
    """Summed over the step's tokens this gradient's norm overflows; the mean's, which training takes, does not."""
    import torch

    here = scene()
    weight, (batch,) = here.model.model.norm.weight, here.batches
    (total,) = torch.autograd.grad(here.trainer.local_loss(here.model, batch), weight)
    factor = 2e18 * int((batch["labels"][:, 1:] >= 0).sum()) / total.norm()
    assert (total * factor).isfinite().all() and (total * factor).norm().isinf()
    weight.register_hook(lambda gradient: gradient * factor)
    assert not here.find().came_again
    weight.register_hook(lambda gradient: gradient * 100)
    assert here.find().came_again


def test_rows_that_fail_only_together_are_named_together(scene):
    here = scene()
    breaks(here, here.model.model.norm, lambda ids: len(ids) > 4)
    cause = here.find()
    places = tuple(place for _, (place,) in here.examples())
    assert cause.rows == places
    assert cause.culprits == (f"rows {', '.join(places)} make the loss nan together, but neither half of them does",)


def test_the_only_row_of_a_step_is_not_said_to_be_worse_than_others(scene):
    here = scene(train__batch_size=1, train__micro_batch_size=1)
    poison(here.model.model.norm.weight, 0)
    cause = here.find()
    ((_, (place,)),) = here.examples()
    assert not cause.all_rows and cause.rows == (place,)
    assert cause.culprits == (f"row {place} makes the loss nan",)
    assert cause.parameter == "model.norm.weight"


def test_fillers_without_a_row_are_no_culprits(scene):
    here = scene(train__batch_size=2, train__micro_batch_size=2)
    row = here.trainer.train_dataset[0]
    filler = {"input_ids": row["input_ids"][:1], "labels": [-100], "position_ids": None, "empty": True}
    here.batches = [here.trainer.data_collator(examples) for examples in ([row, filler], [filler])]
    poison(here.model.model.norm.weight, 0)
    assert here.find().culprits == (f"row {here.where(row['rows'][0])} makes the loss nan",)


def test_all_rows_of_a_packed_example_are_suspects(scene):
    here = scene(data__packing=True, train__batch_size=4, train__micro_batch_size=4)
    held = Counter(token for ids, _ in here.examples() for token in set(ids))
    token, places = next(
        (token, places)
        for ids, places in here.examples() if len(places) > 1
        for token in ids if held[token] == 1
    )  # fmt: skip
    poison(here.model.get_input_embeddings().weight, token)
    cause = here.find()
    assert cause.rows == places and not cause.all_rows
    assert cause.culprits == (
        f"one of these rows, packed into one example, alone makes the loss nan: {', '.join(places)}",
    )


def test_eight_culprits_are_named_and_the_others_counted(scene):
    here = scene(train__batch_size=16, train__micro_batch_size=16)
    (sound, _), *_ = here.examples()

    def failing(ids):
        return any(row[: len(sound)].tolist() != sound for row in ids)

    breaks(here, here.model.model.norm, failing)
    cause = here.find()
    assert len(cause.culprits) == len(cause.rows) == 8 and cause.more > 0 and not cause.all_rows
    assert f"there are at least {cause.more} more among the other rows of the step" in cause.summary()
    assert here.passes <= 8 * (2 * 4 + 2)


def test_all_of_many_rows_are_taken_for_failing_after_sixteen(scene):
    here = scene(train__batch_size=20, train__micro_batch_size=2)
    poison(here.model.model.norm.weight, 0)
    assert here.find().all_rows and here.passes == 16 + 1


@pytest.mark.parametrize(("limit", "value", "passes"), [("PASSES", 5, 5), ("SECONDS", -1.0, 0)])
def test_the_search_ends_at_its_limit_and_tells_what_it_knows(limit, value, passes, scene, monkeypatch):
    here = scene()
    token, _ = here.token_in(1)
    poison(here.model.get_input_embeddings().weight, token)
    monkeypatch.setattr(diagnose, limit, value)
    cause = here.find()
    assert cause.cut_short == f"after {passes} forward passes" and not cause.rows and cause.tokens == (token,)
    assert (cause.module is not None) == cause.came_again == (passes > 0)
    assert "did not come again" not in cause.summary() and "ended early: after" in cause.summary()


def test_a_search_that_fails_itself_does_not_hide_the_fault(scene):
    import torch

    here = scene()
    poison(here.model.model.norm.weight, 0)

    def full(*_):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB\nand more of it")

    here.trainer.local_loss = full
    cause = find_cause(here.trainer, here.batches, here.where)
    assert cause.parameter == "model.norm.weight"
    assert cause.cut_short == "out of memory. Tried to allocate 2 GiB"


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
             "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")  # fmt: skip
    modules = {name: [list(getattr(module, kind)) for kind in kinds] for name, module in model.named_modules()}
    return modules | {name: list(value._backward_hooks or ()) for name, value in model.named_parameters()}


@pytest.mark.parametrize("fault", ["loss", "gradient", "none"])
def test_nothing_is_left_behind_but_cleared_gradients(fault, scene):
    import numpy as np
    import torch

    here = scene(adapter=LORA | {"dropout": 0.5}, train__micro_batch_size=4)
    token, places = here.token_in(1)
    layers = here.model.get_base_model().model.layers

    def dices_and_buffers(module, *_):
        random.random(), np.random.rand()
        here.model.get_base_model().model.rotary_emb.inv_freq.mul_(1.5)

    layers[0].register_forward_hook(dices_and_buffers)
    if fault != "none":
        spoil = nan_behind if fault == "gradient" else None
        breaks(here, layers[1].mlp.down_proj, lambda ids: (ids == token).any(), spoil)
    here.model.train()
    layers[0].mlp.eval()
    for parameter in here.model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None

    def state():
        return [
            {name: value.clone() for name, value in [*here.model.named_parameters(), *here.model.named_buffers()]},
            hooks_of(here.model), {name: module.training for name, module in here.model.named_modules()},
            random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            [{name: value.clone() for name, value in batch.items()} for batch in here.batches],
        ]  # fmt: skip

    before = state()
    cause = here.find()
    after = state()
    assert cause.rows == (tuple(places) if fault != "none" else ())
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:-1] == after[1:-1]
    assert all(torch.equal(batch[name], now[name]) for batch, now in zip(before[-1], after[-1]) for name in batch)
    assert all(parameter.grad is None for parameter in here.model.parameters())


def test_no_gradient_is_handed_to_the_other_ranks(scene):
    """Distributed training hangs on the accumulation of gradients: the search must not come there."""
    here = scene()
    token, places = here.token_in(1)
    breaks(here, here.model.model.layers[1].mlp.down_proj, lambda ids: (ids == token).any(), nan_behind)
    for parameter in here.model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: pytest.fail("a gradient was accumulated"))
    assert here.find().rows == tuple(places)


def test_the_words_of_a_cause_with_much_to_say():
    cause = Cause(tokens=tuple(range(10)), texts=tuple("abcdefghij"), cut_short="after 200 forward passes", more=3)
    assert cause.summary() == (
        "the embedding of token 0 ('a'), 1 ('b'), 2 ('c'), 3 ('d'), 4 ('e'), 5 ('f'), 6 ('g'), 7 ('h') and 2 more is "
        "not finite; there are at least 3 more among the other rows of the step; "
        "the search for rows ended early: after 200 forward passes"
    )
