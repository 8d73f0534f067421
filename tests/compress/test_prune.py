"""Which weights, channels and layers go: by hand, and beside the plainest other way to compute it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tunekit.compress.prune import making, masks
from tunekit.compress.prune.blocks import Blocks, squares
from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import find_decoder, skeleton
from tunekit.core.errors import DataError, UserError
from tunekit.core.registry import PRUNERS

ROWS = [[(7 * row + 3 * at) % 200 + 1 for at in range(20 + 5 * row)] for row in range(4)]
WEIGHTS = torch.tensor([
    [1.0, 2, 3, 4, 5, 6, 7, 8],
    [-8.0, 7, -6, 5, -4, 3, -2, 1],
    [0.1, 0.1, 0.1, 0.1, 1, 1, 1, 1],
    [1.0, -1, 1, -1, 1, -1, 1, -1],
])  # fmt: skip
# two tokens; the norms of the eight inputs are 5, 1, 1, 13, 1, 2, 1, 1
INPUTS = torch.tensor([[3.0, 1, 0, 5, 1, 0, -1, 0], [-4.0, 0, 1, 12, 0, -2, 0, 1]])
NORMS = torch.tensor([5.0, 1, 1, 13, 1, 2, 1, 1])


def prune(source, target, way, *, rows=ROWS, **config):
    target.mkdir(parents=True, exist_ok=True)
    job = {"way": way, "config": config, "source": str(source), "target": str(target), "rows": rows, "threads": 1}
    return making.work(json.loads(json.dumps(job)))["chosen"]


def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def answers(model, row=0):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ROWS[row]]), use_cache=False).logits


def made(folder, arch, tokenizer, **values):
    """A tiny random model of an architecture, on the disk."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    set_seed(4)
    config = AutoConfig.for_model(arch, vocab_size=len(tokenizer), **values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALL = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 32, "intermediate_size": 96, "initializer_range": 0.2, "max_position_embeddings": 128,
         "pad_token_id": 0}  # fmt: skip


def test_wandas_mask_by_hand():
    linear = nn.Linear(8, 4, bias=False)
    linear.weight.data = WEIGHTS.clone()
    with squares({"one": linear}) as sums:
        linear(INPUTS[:1])
        linear(INPUTS[1:])
    norms = sums["one"].sqrt()
    assert torch.equal(norms, NORMS)
    # scores of the first row: 5 2 3 52 5 12 7 8; of the others alike; ties go from the left
    half = WEIGHTS.masked_fill(masks.lowest(WEIGHTS.abs() * norms, 0.5, by_row=True), 0)
    assert half.tolist() == torch.tensor([
        [0.0, 0, 0, 4, 0, 6, 7, 8],
        [-8.0, 7, 0, 5, 0, 3, 0, 0],
        [0.0, 0, 0, 0.1, 0, 1, 1, 1],
        [1.0, 0, 0, -1, 0, -1, 0, -1],
    ]).tolist()  # fmt: skip
    grouped = WEIGHTS.masked_fill(masks.grouped(WEIGHTS.abs() * norms, 2, 4), 0)
    assert grouped.tolist() == torch.tensor([
        [1.0, 0, 0, 4, 0, 6, 0, 8],
        [-8.0, 0, 0, 5, -4, 3, 0, 0],
        [0.1, 0, 0, 0.1, 0, 1, 0, 1],
        [1.0, 0, 0, -1, 0, -1, 0, -1],
    ]).tolist()  # fmt: skip


def test_magnitude_compares_within_the_whole_matrix():
    mask = masks.lowest(WEIGHTS.abs(), 0.25, by_row=False)
    assert mask.sum(1).tolist() == [1, 1, 6, 0]  # four of 0.1, then ones from the top and the left
    assert mask[2].tolist() == [True] * 6 + [False] * 2


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_wanda_is_what_the_whole_model_run_again_for_each_layer_gives(arch, base_of, tmp_path):
    """Without blocks: a full forward pass for each layer, the paper's lines, numbers sorted row by row."""
    base = base_of(arch)
    prune(base, tmp_path / "half", "wanda", sparsity=0.5)
    plain = loaded(base)
    layers = plain.model.layers if arch == "llama" else plain.transformer.h
    for layer in layers:
        linears = [module for module in layer.modules() if type(module).__name__ in ("Linear", "Conv1D")]
        seen = {module: [] for module in linears}
        hooks = [m.register_forward_hook(lambda m, given, _, seen=seen: seen[m].append(given[0][0])) for m in linears]
        for row in range(len(ROWS)):
            answers(plain, row)
        for hook in hooks:
            hook.remove()
        for module in linears:
            turned = type(module).__name__ == "Conv1D"
            weights = (module.weight.T if turned else module.weight).detach().clone()
            scores = weights.abs() * torch.cat(seen[module]).double().pow(2).sum(0).sqrt().float()
            for out in range(len(weights)):
                weights[out, torch.sort(scores[out])[1][: weights.shape[1] // 2]] = 0
            module.weight.data = weights.T.contiguous() if turned else weights
    ours = loaded(tmp_path / "half")
    for (name, value), other in zip(plain.state_dict().items(), ours.state_dict().values(), strict=True):
        assert (value != other).float().mean() < 1e-4, name  # two scores may be one rounding apart


@pytest.mark.parametrize("way", ["magnitude", "wanda"])
@pytest.mark.parametrize(("pattern", "size"), [("2:4", 4), ("4:8", 8)])
def test_a_pattern_holds_in_every_group(way, pattern, size, base_of, tmp_path):
    chosen = prune(base_of(dtype="bfloat16"), tmp_path / "sparse", way, pattern=pattern)
    model = loaded(tmp_path / "sparse")
    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            zeros = (module.weight.reshape(-1, size) == 0).sum(1)
            assert zeros.unique().tolist() == [size // 2], name
    assert len(chosen["tensors"]) == 14
    source = loaded(base_of(dtype="bfloat16"))
    assert torch.equal(model.lm_head.weight, source.lm_head.weight), "the head is left"
    assert torch.equal(model.model.embed_tokens.weight, source.model.embed_tokens.weight)
    kept = model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(kept, source.model.layers[1].mlp.up_proj.weight * (kept != 0))
    assert model.dtype == torch.bfloat16


def test_a_shared_table_is_left_and_stays_shared(base_of, tmp_path):
    prune(base_of(tied=True), tmp_path / "sparse", "wanda", sparsity=0.5)
    model, source = loaded(tmp_path / "sparse"), loaded(base_of(tied=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, source.lm_head.weight)


def test_tensors_of_several_types_keep_them(base_of, tmp_path):
    from safetensors.torch import load_file, save_file

    source = tmp_path / "mixed"
    source.mkdir()
    for path in base_of(dtype="bfloat16").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    prune(source, tmp_path / "sparse", "magnitude", sparsity=0.5)
    written = load_file(tmp_path / "sparse" / "model.safetensors")
    assert {name: value.dtype for name, value in written.items()} == {n: v.dtype for n, v in tensors.items()}
    assert torch.equal(written["model.norm.weight"], tensors["model.norm.weight"])


@pytest.mark.parametrize("arch", ["llama", "gpt2", "phi3", "gemma3_text"])
def test_fewer_channels_are_a_smaller_model_that_writes(arch, tokenizer, tmp_path):
    values = {"gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128}}.get(arch, SMALL)
    base = made(tmp_path / "base", arch, tokenizer, **values)
    chosen = prune(base, tmp_path / "narrow", "channels", size=0.75)
    model, source = loaded(tmp_path / "narrow"), loaded(base)
    before = source.config.n_inner or 256 if arch == "gpt2" else source.config.intermediate_size
    after = model.config.n_inner if arch == "gpt2" else model.config.intermediate_size
    assert (before, after) == ((256, 192) if arch == "gpt2" else (96, 72))
    out = model.generate(torch.tensor([ROWS[0][:5]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape[1] > 5
    # the same channels silenced in the source
    for index, layer in enumerate(source.transformer.h if arch == "gpt2" else source.model.layers):
        gone = [at for at in range(before) if at not in chosen["layers"][index]["stays"]]
        with torch.no_grad():
            if arch == "gpt2":
                layer.mlp.c_proj.weight[gone] = 0
            else:
                layer.mlp.down_proj.weight[:, gone] = 0
    torch.testing.assert_close(answers(model), answers(source), rtol=1e-4, atol=1e-3)


def test_channels_go_by_weights_and_activation(base_of, tmp_path):
    chosen = prune(base_of(), tmp_path / "narrow", "channels", size=0.5)
    mlp, seen = loaded(base_of()).model.layers[0].mlp, []
    model = loaded(base_of())
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for row in range(len(ROWS)):
        answers(model, row)
    gate, up, down = (layer.weight.detach().square() for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    weights = gate.sum(1).sqrt() + up.sum(1).sqrt() + down.sum(0).sqrt()
    importance = weights * torch.cat(seen).square().sum(0).sqrt()
    assert sorted(importance.topk(48).indices.tolist()) == chosen["layers"][0]["stays"]


@pytest.mark.parametrize("by", ["cosine", "perplexity"])
@pytest.mark.parametrize("arch", ["llama", "gemma2", "qwen3"])
def test_fewer_layers_answer_as_the_model_that_skips_them(arch, by, tokenizer, tmp_path):
    extra = {"sliding_window": 8} if arch == "gemma2" else {}
    base = made(tmp_path / "base", arch, tokenizer, **SMALL, **extra)
    chosen = prune(base, tmp_path / "short", "depth", layers=2, by=by)
    model, source = loaded(tmp_path / "short"), loaded(base)
    stays = [at for at in range(4) if at not in chosen["dropped"]]
    assert model.config.num_hidden_layers == 2 and len(chosen["dropped"]) == 2
    if getattr(source.config, "layer_types", None):
        assert model.config.layer_types == [source.config.layer_types[at] for at in stays]
    for new, old in enumerate(stays):
        ours, theirs = (one.model.layers[at].state_dict() for one, at in ((model, new), (source, old)))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    out = model.generate(torch.tensor([ROWS[0][:5]]), max_new_tokens=12, do_sample=False)
    assert out.shape[1] > 5
    for index in chosen["dropped"]:
        source.model.layers[index].register_forward_hook(lambda _, given, out: given[0])
    torch.testing.assert_close(answers(model), answers(source), rtol=1e-4, atol=1e-4)


def test_block_influence_is_one_less_the_cosine(tokenizer, tmp_path):
    base = made(tmp_path / "base", "llama", tokenizer, **SMALL)
    chosen = prune(base, tmp_path / "short", "depth", layers=1)
    model, cosines = loaded(base), [[] for _ in range(3)]
    for row in ROWS:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        for at in range(3):  # what comes out of the last one is normalized there
            one, other = states[at][0].double(), states[at + 1][0].double()
            cosines[at] += ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).tolist()
    assert chosen["scores"][:3] == pytest.approx([1 - sum(values) / len(values) for values in cosines], abs=1e-6)
    assert chosen["dropped"] == [min(range(4), key=chosen["scores"].__getitem__)]


def test_by_perplexity_the_layer_goes_that_is_missed_least(tokenizer, tmp_path):
    from torch.nn.functional import cross_entropy

    base = made(tmp_path / "base", "llama", tokenizer, **SMALL)
    chosen = prune(base, tmp_path / "short", "depth", layers=1, by="perplexity")
    found = {}
    for index in range(4):
        model = loaded(base)
        del model.model.layers[index]
        model.config.num_hidden_layers = 3
        losses = [cross_entropy(answers(model, at)[0, :-1], torch.tensor(ROWS[at][1:]), reduction="sum")
                  for at in range(len(ROWS))]  # fmt: skip
        found[index] = float((sum(losses) / sum(len(row) - 1 for row in ROWS)).exp())
    assert {int(at): value for at, value in chosen["scores"][0].items()} == pytest.approx(found, rel=1e-4)
    assert chosen["dropped"] == [min(found, key=found.__getitem__)]


def test_what_the_config_says_of_each_layer_is_made_right(tokenizer, tmp_path):
    base = made(tmp_path / "base", "qwen3", tokenizer, **SMALL)
    model = loaded(base)
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    model.config.layer_types, model.config.mlp_only_layers, model.config.max_window_layers = kinds, [0, 3], 2
    way = PRUNERS.load("depth")
    pruning = Pruning(model, find_decoder(model), way.Config(layers=2), ROWS)
    way.shrink(pruning, {"dropped": [0, 1], "of": 4})
    config = model.config
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert (config.num_hidden_layers, config.mlp_only_layers, config.max_window_layers) == (2, [1], 0)


def test_a_layer_that_counts_its_number_is_refused(tokenizer, tmp_path):
    """GPT-2's option divides scores by the layer's number, which another one has once some are gone."""
    sizes = {"n_layer": 4, "n_embd": 64, "n_head": 2, "n_positions": 128, "scale_attn_by_inverse_layer_idx": True}
    base = made(tmp_path / "base", "gpt2", tokenizer, initializer_range=0.5, **sizes)
    model = loaded(base)
    for block in model.transformer.h[:2]:  # those that add nothing are the first to go
        block.attn.c_proj.weight.data.zero_()
        block.mlp.c_proj.weight.data.zero_()
    model.save_pretrained(base)
    with pytest.raises(UserError, match="a gpt2 without these parts answers otherwise"):
        prune(base, tmp_path / "short", "depth", layers=2)


@pytest.mark.parametrize("way", ["wanda", "channels", "depth"])
def test_without_rows_there_is_nothing_to_go_by(way, base_of, tmp_path):
    config = {"wanda": {"sparsity": 0.5}, "channels": {"size": 0.5}, "depth": {"layers": 1}}[way]
    with pytest.raises(DataError, match="no rows to look at"):
        prune(base_of(), tmp_path / "none", way, rows=[], **config)


def faults(way, model, **config):
    plugin = PRUNERS.load(way)
    return [problem.what for problem in plugin.problems(plugin.Config(**config), find_decoder(model))]


def test_two_layers_with_one_tensor_are_refused_by_name(base_of):
    model = loaded(base_of())
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    found = faults("wanda", model, sparsity=0.5)
    assert found == [
        "'model.layers.0.mlp.up_proj.weight' and 'model.layers.1.mlp.up_proj.weight' are one tensor: what one can do "
        "without, the other may need"
    ]
    assert faults("depth", model, layers=1) == []


def test_experts_are_refused_by_name(tokenizer, tmp_path):
    sizes = {key: value for key, value in SMALL.items() if key != "head_dim"}
    base = made(tmp_path / "base", "mixtral", tokenizer, num_local_experts=2, **sizes)
    for way, config in (("magnitude", {"sparsity": 0.5}), ("channels", {"size": 0.5})):
        (found,) = faults(way, skeleton(base), **config)
        assert "'model.layers.0.mlp.experts." in found and "holds all experts" in found
    assert faults("depth", skeleton(base), layers=1) == []


def test_an_architecture_without_known_parts_is_named(base_of, tokenizer, tmp_path):
    base = made(tmp_path / "mamba", "mamba", tokenizer, hidden_size=64, num_hidden_layers=2, state_size=4)
    assert faults("channels", skeleton(base), size=0.5) == [
        "the feed-forward block of a mamba is not found by its shapes"
    ]
    model = loaded(base_of())
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match=r"decoder's layers are not found in a model of the architecture llama"):
        find_decoder(model)


def test_a_layer_that_cannot_be_run_alone_is_named(base_of):
    """What it gives depends on more than it is given: here, on how often it was called."""
    model, calls = loaded(base_of()), []

    def counted(_, given, out):
        calls.append(1)
        return out * len(calls)

    model.model.layers[0].register_forward_hook(counted)
    with pytest.raises(UserError, match="a llama cannot be run one by one"):
        Blocks(find_decoder(model), ROWS)


@pytest.mark.parametrize(
    ("way", "config", "told"),
    [
        ("magnitude", {}, "nothing says how many weights"),
        ("wanda", {"sparsity": 0.5, "pattern": "2:4"}, "both --sparsity and --pattern"),
        ("wanda", {"sparsity": 0.001}, "0.001 of 64 weights is 0"),
        ("wanda", {"sparsity": 0.999}, "0.999 of 64 weights is 64"),
        ("channels", {}, "nothing says how many channels"),
        ("channels", {"size": 0.001}, "0.001 of 96 channels is 0"),
        ("channels", {"size": 0.9999}, "0.9999 of 96 channels is 96"),
        ("depth", {}, "nothing says how many layers"),
        ("depth", {"layers": 2}, "2 layers shall go, and the model has 2"),
        ("depth", {"layers": 9}, "9 layers shall go, and the model has 2"),
    ],
)
def test_a_share_that_is_none_is_refused(way, config, told, base_of):
    (found,) = faults(way, skeleton(base_of()), **config)
    assert found.startswith(told)


def test_groups_that_do_not_fill_the_inputs_are_refused(tokenizer, tmp_path):
    base = made(tmp_path / "base", "llama", tokenizer, **(SMALL | {"intermediate_size": 98}))
    (found,) = faults("wanda", skeleton(base), pattern="2:4")
    assert found == "groups of 4 do not fill the 98 inputs of 'model.layers.0.mlp.down_proj'"
