"""Reward models: scores against transformers' own, and folders that hold none."""

import json
import shutil

import pytest

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.types import Message
from tunekit.rl.reward_model import RewardModel, find
from tunekit.rl.rewarding import Rewarder

TALKS = [
    (Message("user", "Why?"), Message("assistant", "Because it is so, and was so before.")),
    (Message("system", "Be short."), Message("user", "2 + 2?"), Message("assistant", "4")),
    (Message("user", "Why?"), Message("assistant", "")),
    (Message("user", "Say a lot."), Message("assistant", "la " * 60)),
    (Message("user", "Why?"), Message("assistant", " So. \n\n")),
]


def words_of(tokenizer, talk):
    return tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in talk], tokenize=False)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_scores_are_those_of_transformers_pipeline(kind, scorer):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = scorer(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    ask = pipeline("text-classification", plain, tokenizer=tokenizer)
    wanted = [ask(words_of(tokenizer, talk), function_to_apply="none")[0]["score"] for talk in TALKS]
    assert max(wanted) - min(wanted) > 0.1  # or equality would say little
    model = RewardModel.load(folder, device="cpu")
    for size in (1, 2, 16):  # padded in every other way
        assert model.scores(TALKS, size) == pytest.approx(wanted, abs=1e-5)
    assert model.scores(TALKS[::-1]) == pytest.approx(wanted[::-1], abs=1e-5)
    assert model.scores([]) == []


def test_a_last_token_that_pads_as_well_is_scored(scorer, tmp_path):
    """transformers, told that the end of a turn pads, reads the token before; here its score is asked for as it is."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = shutil.copytree(scorer(), tmp_path / "ends")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    ids = torch.tensor([tokenizer("Why?<|im_end|>So.<|im_end|>", add_special_tokens=False)["input_ids"]])
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        wanted = plain.score(plain.model(ids).last_hidden_state)[0, :, 0]
        plain.config.pad_token_id = int(ids[0, -1])
        assert plain(ids).logits.item() == pytest.approx(wanted[-2].item(), abs=1e-5)  # the fault
    model = RewardModel.load(folder, device="cpu")
    talk = (Message("user", "Why?"), Message("assistant", "So."))
    assert model.scores([talk, (*talk, *talk)])[0] == pytest.approx(wanted[-1].item(), abs=1e-5)


def test_control_tokens_in_an_answer_are_text(scorer):
    model = RewardModel.load(scorer(), device="cpu")
    ids = model._ids((Message("user", "Hi"), Message("assistant", "a<|im_end|>\n<|im_start|>user\nb")), "here")
    end = model.encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 2


def test_a_text_that_was_continued_is_scored_without_a_template(scorer, blocks, answer, tmp_path):
    from dataclasses import replace

    model = RewardModel.load(scorer(), device="cpu")
    rewarder = Rewarder(blocks(f"{{model: '{scorer()}', device: cpu}}"), tmp_path)
    given = [answer("So.", prompt="Why?"), replace(answer(" time", prompt="Once upon a"), messages=())]
    (values,) = rewarder.score(given).parts.values()
    wanted = model.scores([(Message("user", "Why?"), Message("assistant", "So.")), "Once upon a time"])
    assert values == pytest.approx(wanted, abs=1e-6) and values[0] != values[1]


@pytest.fixture
def adapted(scorer, tmp_path):
    """An adapter with a head on the folder of a language model; the adapter's folder, and what it is on."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    base = scorer("llama", cls=AutoModelForCausalLM)

    def make(head=True, task="SEQ_CLS"):
        torch.manual_seed(3)
        kind = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
        model = kind.from_pretrained(base, **({"num_labels": 1} if task == "SEQ_CLS" else {}))
        model = get_peft_model(model, LoraConfig(task_type=task, r=4, target_modules=["q_proj", "v_proj"]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.2)
        folder = tmp_path / "adapter"
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        if not head:
            from safetensors.torch import load_file, save_file

            file = folder / "adapter_model.safetensors"
            kept = {name: value for name, value in load_file(file).items() if ".score." not in name}
            save_file(kept, file, {"format": "pt"})
        return folder, model

    return make


def test_an_adapter_is_put_on_its_base_with_the_head_that_it_brings(adapted):
    import torch
    from transformers import AutoTokenizer

    folder, model = adapted()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = []
    with torch.no_grad():
        for talk in TALKS:
            ids = tokenizer(words_of(tokenizer, talk), return_tensors="pt", add_special_tokens=False)["input_ids"]
            wanted.append(model.eval()(input_ids=ids).logits.item())
    assert RewardModel.load(folder, device="cpu").scores(TALKS) == pytest.approx(wanted, abs=1e-5)


def test_an_adapter_on_a_base_of_random_weights_finds_the_same_ones_again(tmp_path):
    """The base is made again from the seed of the training, as a run's manifest tells it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tunekit.model.artefact import base_facts, write_manifest
    from tunekit.model.names import TINY
    from tunekit.model.tokenizer import load_config
    from tunekit.recipe.schema import ModelBlock

    block = ModelBlock(name="builtin:random?hidden=32&layers=1&heads=2")
    config = load_config(block)
    config.num_labels = 1
    torch.manual_seed(11)  # as training does
    model = AutoModelForSequenceClassification.from_config(config)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_manifest(tmp_path, {"base": base_facts(block, seed=11, dtype="float32")}, tokenizer)
    ids = tokenizer(words_of(tokenizer, TALKS[0]), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = model.eval()(input_ids=ids).logits.item()
    assert RewardModel.load(tmp_path, device="cpu").scores(TALKS[:1]) == pytest.approx([wanted], abs=1e-5)


def refused(call, *args, kind=UserError):
    with pytest.raises(kind) as caught:
        call(*args)
    return caught.value.problems[0]


def test_a_language_model_is_no_reward_model(scorer, adapted, blocks):
    from transformers import AutoModelForCausalLM

    folder = scorer("llama", cls=AutoModelForCausalLM)
    problem = refused(Rewarder(blocks(f"{{model: '{folder}'}}")).check)
    assert problem.what == "the model (LlamaForCausalLM) has no head that scores: it is no reward model"
    assert problem.where == str(folder) and "`tunekit reward`" in problem.fix
    folder, _ = adapted(task="CAUSAL_LM")
    assert refused(find, folder).what.startswith("the lora adapter (task CAUSAL_LM) has no head that scores")


def test_an_adapter_whose_file_lost_the_head_is_refused(adapted):
    folder, _ = adapted(head=False)
    assert refused(find, folder).what == "the lora adapter has no head that scores: it is no reward model"


def test_weights_without_the_head_are_refused(scorer, tmp_path):
    """transformers would make a random one, and go on."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(scorer(), tmp_path / "headless")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({n: v for n, v in tensors.items() if n != "score.weight"}, file, {"format": "pt"})
    assert "(LlamaForSequenceClassification) has no head" in refused(RewardModel.load, folder).what
    save_file({n: v for n, v in tensors.items() if n != "model.norm.weight"}, file, {"format": "pt"})
    problem = refused(RewardModel.load, folder, kind=MachineError)
    assert problem.what == "the weights lack the tensor 'model.norm.weight'"


def test_a_classifier_of_several_labels_and_one_that_is_no_decoder_are_refused(scorer):
    problem = refused(find, scorer("llama", labels=3))
    assert problem.what == "the model (LlamaForSequenceClassification) gives 3 numbers, and a reward is one"
    assert "does not score at the last token" in refused(RewardModel.load, scorer("bert")).what


def test_folders_that_hold_nothing_or_are_no_more_as_they_were(scorer, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(find, tmp_path / "empty").what == "there is no model in this folder"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text("{}")
    assert refused(find, tmp_path / "run").what == "the run has no finished model"

    from transformers import AutoTokenizer

    from tunekit.model.artefact import write_manifest

    folder = shutil.copytree(scorer(), tmp_path / "run" / "model")
    write_manifest(folder, {}, AutoTokenizer.from_pretrained(folder))
    assert find(tmp_path / "run").folder == folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert refused(find, tmp_path / "run", kind=MachineError).what == "the file is not as it was saved"


def test_a_device_that_is_not_there(scorer, blocks):
    import torch

    if torch.cuda.is_available():
        pytest.skip("it is there")
    problem = refused(Rewarder(blocks(f"{{model: '{scorer()}', device: cuda}}")).check, kind=MachineError)
    assert problem.what == "there is no device 'cuda' here"


def test_a_conversation_that_does_not_fit_or_that_the_template_refuses(scorer, blocks, answer, tmp_path):
    from transformers import AutoTokenizer

    rewarder = Rewarder(blocks(f"{{model: '{scorer()}', device: cpu}}"))
    problem = refused(rewarder.score, [answer("x"), answer("1 2 3 4 " * 90, where="a.jsonl:8")], kind=DataError)
    assert problem.where == "a.jsonl:8" and problem.what.endswith("the reward model has 256 positions")

    folder = shutil.copytree(scorer(), tmp_path / "strict")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    model = RewardModel.load(folder, device="cpu")
    problem = refused(model.scores, TALKS[1:2], kind=DataError)
    assert problem.what == "the reward model's template refuses it: the chat template refuses it: no system"
    assert problem.where == "conversation 1"


def test_a_tokenizer_without_a_template_scores_no_conversation(scorer, tmp_path):
    folder = shutil.copytree(scorer(), tmp_path / "bare")
    for file in folder.glob("*.jinja"):
        file.unlink()
    assert "has no chat template" in refused(RewardModel.load(folder, device="cpu").scores, TALKS[:1]).what


def test_a_reward_model_of_the_hub_is_told_from_a_folder(scorer, blocks, tmp_path, monkeypatch):
    from tunekit.recipe.schema import ModelBlock

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    problem = refused(Rewarder(blocks("{model: org/reward}"), tmp_path).check, kind=MachineError)
    assert "'org/reward' cannot be loaded from the Hub" in problem.what
    for place in ("runs/reward", "mine/reward"):
        found = refused(Rewarder(blocks(f"{{model: {place}}}"), tmp_path).check)
        assert found.what == f"there is no folder '{place}'"
    problem = refused(Rewarder(blocks(f"{{model: '{scorer()}', revision: v1}}"), tmp_path).check)
    assert problem.what.endswith("is a folder, which has no revisions")
    named = RewardModel.load(ModelBlock(name=str(scorer())), device="cpu")
    assert named.scores(TALKS) == RewardModel.load(scorer(), device="cpu").scores(TALKS)
