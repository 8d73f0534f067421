"""Several LoRA adapters as one: PEFT's own arithmetic, and refusals by name."""

from __future__ import annotations

import pytest

from tunekit.compress.combine import METHODS, Combination, check, combined
from tunekit.compress.merge import Request, merge
from tunekit.core.errors import UserError
from tunekit.core.progress import Silent
from tunekit.model.restore import find


def lora(**values):
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "target_modules": ["q_proj", "down_proj"]} | values))


@pytest.fixture(scope="module")
def pair(base_of, adapter_of):
    """Two adapters of one base."""
    return [adapter_of(base_of(), lora(), move=0.3, seed=seed)[0] for seed in (2, 3)]


def base_model(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base)


DENSITY = {name: None if name in ("cat", "svd", "linear") else 0.5 for name in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_peft_makes(method, pair, base_of, logits):
    import torch
    from peft import PeftModel

    density = DENSITY[method]
    model = PeftModel.from_pretrained(base_model(base_of()), pair[0], adapter_name="a")
    model.load_adapter(str(pair[1]), "b")
    torch.manual_seed(7)
    options = {} if density is None else {"density": density}
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type=method, **options)
    model.set_adapter("both")
    wanted = logits(model)
    seed = 7 if method.startswith("dare") else None
    combination = Combination((pair[1],), (0.7, 0.4), method, density, seed=seed)
    with combined(find(pair[0]), combination) as made:
        ours = logits(PeftModel.from_pretrained(base_model(base_of()), made.folder))
        again = find(made.folder)
    # singular values are summed in another order where the file's numbers lie in memory otherwise
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4 if method.endswith("svd") else 0)
    assert again.base_facts == find(pair[0]).base_facts
    assert not made.folder.exists()


def delta_sum(base, folders, weights):
    """Weights of the base with the weighted sum of what each adapter's own merge adds."""
    from peft import PeftModel

    plain = base_model(base).state_dict()
    summed = {key: value.clone() for key, value in plain.items()}
    for folder, weight in zip(folders, weights, strict=True):
        merged = PeftModel.from_pretrained(base_model(base), folder).merge_and_unload().state_dict()
        for key in summed:
            summed[key] += weight * (merged[key] - plain[key])
    return summed


@pytest.mark.parametrize("rslora", [False, True])
def test_cat_is_the_exact_sum_of_what_each_adds(rslora, base_of, adapter_of, rows, here, tmp_path):
    """PEFT itself scales a combination of rslora adapters by the root of the rank too much."""
    import torch

    configs = [lora(use_rslora=rslora, r=rank) for rank in (4, 2)]
    folders = [adapter_of(base_of(), config, move=0.3, seed=seed)[0] for seed, config in enumerate(configs)]
    combination = Combination((folders[1],), (0.7, 0.4))
    proof = merge(Request(folders[0], tmp_path / "merged", rows=rows, combination=combination), Silent())
    wanted = delta_sum(base_of(), folders, (0.7, 0.4))
    for key, value in base_model(tmp_path / "merged").state_dict().items():
        assert torch.allclose(value, wanted[key], atol=1e-5), key
    assert proof["merged"]["largest_logit_difference"] < proof["limits"]["largest_logit_difference"]


def test_what_cannot_be_combined_is_refused_by_name(pair, base_of, adapter_of):
    from peft import IA3Config

    other = adapter_of(base_of(seed=9), lora())[0]
    moved = adapter_of(base_of(), lora(), facts={"base": find(pair[0]).base_facts | {"weights": "0"}})[0]
    single = {"target_modules": ["q_proj"]}
    bad = {
        **{
            f"init_lora_weights={start}": adapter_of(base_of(), lora(init_lora_weights=start))[0]
            for start in ("pissa", "pissa_niter_4", "olora")
        },
        "invocation tokens": adapter_of(base_of(), lora(alora_invocation_tokens=[1], **single))[0],
        "replicated layers": adapter_of(base_of(), lora(layer_replication=[[0, 2], [1, 2]], **single))[0],
        "IA3 cannot be combined": adapter_of(base_of(), IA3Config(task_type="CAUSAL_LM"))[0],
        "DoRA": adapter_of(base_of(), lora(use_dora=True))[0],
        "trained tokens": adapter_of(base_of(), lora(trainable_token_indices=[3]))[0],
        "belongs on the base": other,
        "another revision": moved,
        "a whole model": base_of(),
    }
    for what, folder in bad.items():
        with pytest.raises(UserError, match=what) as raised:
            check([find(pair[0]), find(folder)], Combination((folder,)))
        assert str(folder) in str(raised.value), what
        if what.startswith("init"):
            with pytest.raises(UserError, match=what):
                check([find(folder), find(pair[0])], Combination((pair[0],)))


def test_each_load_of_a_pissa_adapter_takes_its_start_out_of_the_shared_base(base_of, adapter_of, logits):
    """The fault: the first one gives other logits once the second is loaded beside it, though that is not active."""
    from peft import PeftModel

    configs = [lora(init_lora_weights="pissa"), lora(init_lora_weights="pissa", r=2)]
    folders = [adapter_of(base_of(), config, seed=seed)[0] for seed, config in enumerate(configs)]
    model = PeftModel.from_pretrained(base_model(base_of()), folders[0], adapter_name="a")
    alone = logits(model)
    model.load_adapter(str(folders[1]), "b")
    assert (logits(model) - alone).abs().max() > 1e-2
    with pytest.raises(UserError, match="loading it changes the base"):
        check([find(folder) for folder in folders], Combination((folders[1],)))


WRONG = [
    (Combination((), (), "mean"), "unknown method 'mean'"),
    (Combination((), (1.0,), "cat"), "1 weights for 2 adapters"),
    (Combination((), (), "ties"), "--density"),
    *((Combination((), (), method, density=0.5), "no use for --density") for method in ("cat", "svd", "linear")),
    *((Combination((), (), method, None if method == "cat" else 0.5, 3), "no use for --rank")
      for method in ("cat", "ties", "dare_ties")),
    *((Combination((), (), method, density, seed=0), "no use for --seed")
      for method, density in (("cat", None), ("svd", None), ("ties", 0.5), ("magnitude_prune_svd", 0.5))),
]  # fmt: skip


@pytest.mark.parametrize(("combination", "what"), WRONG)
def test_wrong_wishes_are_told_before_anything_is_loaded(combination, what, pair):
    with pytest.raises(UserError, match=what):
        check([find(folder) for folder in pair], combination)


def test_ranks_and_modules_trained_in_full(pair, base_of, adapter_of):
    wide = adapter_of(base_of(), lora(r=8))[0]
    with pytest.raises(UserError, match="one rank"):
        check([find(pair[0]), find(wide)], Combination((wide,), (), "linear"))
    check([find(pair[0]), find(wide)], Combination((wide,), (), "cat"))
    full = [adapter_of(base_of(), lora(modules_to_save=["lm_head"]))[0] for _ in range(2)]
    with pytest.raises(UserError, match="trained in full"):
        check([find(folder) for folder in full], Combination((full[1],)))
