"""Our harness task beside lm_eval's own HFLM: the same tokens to the last, the same numbers to the last digit."""

import copy
import functools
import random

import pytest

pytest.importorskip("lm_eval")

from harness_for_tests import MC2, PlainEngine, Told, local, measured, real_tasks

from tunekit.core.progress import Silent
from tunekit.core.registry import TASKS
from tunekit.evaluate.harness_lm import language_model
from tunekit.model.names import TINY

ROWS = 20
ENGINE = "transformers"  # or "plain"


def engine_of(model, tokenizer, kind=ENGINE):
    if kind == "plain":
        return PlainEngine(model, tokenizer)
    from tunekit.evaluate.engines.transformers import TransformersEngine

    return TransformersEngine(model, tokenizer, batch_size=8)


@pytest.fixture(scope="module")
def tiny():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(TINY))


@pytest.fixture(scope="module")
def model(tiny, llama):
    """A Llama so random that its answers differ from row to row."""
    shape = {"vocab_size": len(tiny), "max_position_embeddings": 1024, "bos_token_id": None}
    return llama(
        3, **shape, pad_token_id=tiny.pad_token_id, eos_token_id=tiny.eos_token_id, initializer_range=0.15
    ).eval()


def hflm(model, tokenizer, **options):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, **options)


@pytest.fixture(scope="module")
def tasks(shared_data, tmp_path_factory):
    """Tasks written out, but for MC2, which is a file: its metric is code."""
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    (folder / "truth.py").write_text(MC2)
    found = real_tasks(shared_data, folder, ROWS)
    (mc2,) = [task for task in found if task["task"] == "mc2_local"]
    text = yaml.safe_dump(mc2, sort_keys=False) + "process_results: !function truth.mass\n"
    (folder / "mc2.yaml").write_text(text)
    return folder, [task for task in found if task is not mc2]


@pytest.fixture(scope="module")
def lm_evals(model, tiny):
    """lm_eval's own evaluation, one request at a time, without its four seconds of asking about the machine."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    def run(tasks, include=None, **options):
        manager = TaskManager(include_path=include, include_defaults=False)
        lm, tasks = hflm(model, tiny, batch_size=1), copy.deepcopy(tasks)
        return lm_eval.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield run


@pytest.fixture(scope="module")
def theirs(lm_evals, tasks):
    folder, written_out = tasks
    return lm_evals(["mc2_local", *written_out], str(folder))


@pytest.fixture(scope="module")
def ours(model, tiny, tasks):
    @functools.cache
    def run(kind=ENGINE):
        folder, written_out = tasks
        task = TASKS.load("harness")
        config = task.Config(tasks=["mc2_local", *written_out], include=folder, allow_code=True)
        task.check([], config)
        found = task.run(engine_of(model, tiny, kind), [], config, screen=Silent())
        return {(result.name, result.metric): result for result in found}

    return run


WANTED = {
    ("mc2_local", "mc2"): "mc2,none",
    ("piqa_local", "acc"): "acc,none",
    ("piqa_local", "acc_norm"): "acc_norm,none",
    ("mc1_local", "acc"): "acc,none",
    ("bbh_local", "exact_match,strict"): "exact_match,strict",
    ("bbh_local", "exact_match,digits"): "exact_match,digits",
    ("mmlu_astronomy", "acc"): "acc,none",
    ("mmlu_human_aging", "acc"): "acc,none",
}


@pytest.mark.parametrize("kind", ["plain", "transformers"])
def test_numbers_are_those_of_lm_eval(kind, ours, theirs):
    found = ours(kind)
    assert set(found) == set(WANTED)
    for (task, metric), key in WANTED.items():
        result, number = found[task, metric], theirs["results"][task][key]
        mine = sum(result.values) / sum(result.weights)
        assert len(result.items) == ROWS
        if metric == "mc2" and kind != "plain":  # a function of the likelihoods themselves, which batches round
            assert mine == pytest.approx(number, rel=1e-5)
        else:
            assert mine == number, (task, metric, mine, number)
    numbers = [theirs["results"][task][key] for (task, metric), key in WANTED.items() if "exact" not in metric]
    assert len(set(numbers)) > 3 and all(0 < number < 1 for number in numbers), "a test that could not fail"


def test_rows_prompts_and_answers_are_those_of_lm_eval(ours, theirs):
    for (task, metric), result in ours().items():
        chosen = metric.partition(",")[2] or "none"
        samples = [sample for sample in theirs["samples"][task] if sample["filter"] == chosen]
        assert [item.prompt_text for item in result.items] == [sample["arguments"][0][0] for sample in samples]
        if task == "bbh_local":
            assert list(result.texts) == [sample["resps"][0][0] for sample in samples]
            assert len(set(result.texts)) > 3
            assert [item.reference for item in result.items] == [sample["target"] for sample in samples]
        elif metric != "mc2":
            assert list(result.values) == [sample[metric] for sample in samples]
    first = ours()["piqa_local", "acc"].items[0]
    assert first.where == "piqa_local, document 0"
    assert first.reference.startswith("Provide the guinea pig with a cage full of a few inches of bedding made of")


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, 0, ("task", number, 1)) for number, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def tokenizers(tiny, tokenizer):
    """One without a first token, one of characters that adds it, and byte pairs that merge over any border."""
    from tokenizers import Tokenizer, decoders, models, processors, trainers
    from transformers import PreTrainedTokenizerFast

    merging = Tokenizer(models.BPE(unk_token="<unk>"))
    merging.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "<end>"], show_progress=False)
    merging.train_from_iterator(["question: a b\nanswer: yes no maybe"] * 9, trainer)
    merging.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    first = {"bos_token": "<s>", "eos_token": "<end>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return {
        "tiny": tiny,
        "characters": tokenizer,
        "merging": PreTrainedTokenizerFast(tokenizer_object=merging, **first),
    }


PAIRS = [
    ("question: a", " yes"),
    ("question: a ", "yes"),
    ("question: a \n ", "no"),
    ("ques", "tion: a"),  # one word in two parts
    ("question: a b\nans", "wer: yes no"),
    ("", "yes"),
    ("", "<s>yes"),
    ("", "<|im_end|>yes"),
    ("<s>question: a", " maybe no"),
    ("<|im_start|>user\na<|im_end|>\n", "yes"),
    ("<|im_end|>question", " yes"),
    ("answer: yes no maybe " * 40, "maybe no"),  # longer than the model reads
    ("a b", " answer: yes no maybe" * 2),
]


@pytest.mark.parametrize("name", ["tiny", "characters", "merging"])
def test_every_token_is_the_one_that_hflm_reads(name, tokenizers, llama):
    """HFLM's own tokens are caught where it would compute; 48 positions, so that texts are cut."""
    from lm_eval.models.huggingface import HFLM

    tokenizer, caught = tokenizers[name], []

    class Caught(HFLM):
        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            caught.extend([*before, *after] for _, before, after in requests)
            counts.extend(len(after) for _, _, after in requests)
            return [(0.0, False)] * len(requests)

        def _model_generate(self, context, max_length, stop, **options):
            caught.append(context[0].tolist())
            ends.append((max_length - context.shape[1], stop))
            return context

    counts: list[int] = []
    ends: list = []
    model = llama(vocab_size=len(tokenizer), max_position_embeddings=48)
    lm, engine = Caught(pretrained=model, tokenizer=tokenizer, batch_size=1), Told(tokenizer, lambda *_: 0.0, 48)
    mine = language_model(engine, Silent())
    fit = [(context, target) for context, target in PAIRS if len(tokenizer(target)["input_ids"]) < 48]
    for kind, arguments in (("loglikelihood", fit), ("loglikelihood_rolling", [(a + b,) for a, b in PAIRS])):
        asked = instances(kind, arguments)
        getattr(lm, kind)(asked)
        getattr(mine, kind)(asked)
    assert [request.ids for request in engine.asked] == [tuple(ids[-49:]) for ids in caught]
    assert [sum(request.scored) for request in engine.asked] == counts
    assert len(caught) > len(fit) + len(PAIRS), "no text had several windows"
    assert max(map(len, caught)) > 49, "no text was cut"
    caught.clear()
    engine.asked.clear()
    settings = {"until": ["\n", "b"], "max_gen_toks": 9}
    asked = instances("generate_until", [(a, settings) for a, _ in PAIRS if a])
    lm.generate_until(asked)
    engine.answer = lambda *_: ""
    mine.generate_until(asked)
    assert sorted(prompt.ids for prompt in engine.asked) == sorted(map(tuple, caught))
    assert {prompt.max_new_tokens for prompt in engine.asked} == {tokens for tokens, _ in ends} == {9}
    assert {prompt.stops for prompt in engine.asked} == {tuple(stop) for _, stop in ends}


@pytest.mark.parametrize("kind", ["plain", ENGINE])
def test_likelihoods_of_texts_in_windows(kind, tiny, llama):
    model = llama(5, vocab_size=len(tiny), max_position_embeddings=40).eval()
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "and", "ate", "its", "red", "fish"], k=90)
    asked = instances("loglikelihood_rolling", [(" ".join(words[:60]),), (" ".join(words[60:64]),), ("",)])
    found = language_model(engine_of(model, tiny, kind), Silent()).loglikelihood_rolling(asked)
    assert found == pytest.approx(hflm(model, tiny, batch_size=1).loglikelihood_rolling(asked), rel=1e-5)
    assert found[0] < found[1] < 0 == found[2]


def test_chat_prompts_are_those_of_lm_eval(model, tiny, lm_evals, tmp_path):
    rows = [{"q": f"{a} plus {b}?", "right": (a + b) % 3} for a, b in [(1, 2), (2, 2), (5, 3), (4, 3), (0, 1)]]
    shots = [{"q": "1 plus 1?", "right": 2}, {"q": "1 plus 0?", "right": 1}, {"q": "0 plus 0?", "right": 0}]
    fields = {
        "doc_to_text": "{{q}}",
        "doc_to_target": "right",
        "description": "Count modulo three.",
        "num_fewshot": 2,
    }
    splits = {"test": rows, "fewshot": shots}
    tasks = [
        local(
            tmp_path, "choose", splits, output_type="multiple_choice", doc_to_choice=["zero", "one", "two"],
            metric_list=measured("acc", "acc_norm"), **fields,
        ),
        local(
            tmp_path, "say", splits, output_type="generate_until", gen_prefix="It is",
            **(fields | {"doc_to_target": "{{right}}"}),
            metric_list=measured("exact_match"), generation_kwargs={"until": ["."], "max_gen_toks": 5},
        ),
    ]  # fmt: skip
    theirs = lm_evals(tasks, apply_chat_template=True)
    task = TASKS.load("harness")
    found = task.run(engine_of(model, tiny), [], task.Config(tasks=tasks, chat=True), screen=Silent())
    for result in found:
        samples = theirs["samples"][result.name]
        assert [item.prompt_text for item in result.items] == [sample["arguments"][0][0] for sample in samples]
        assert list(result.values) == [sample[result.metric] for sample in samples]
        assert "<|im_start|>" in result.items[0].prompt_text and "modulo three" in result.items[0].prompt_text
    texts = next(result.texts for result in found if result.name == "say")
    assert list(texts) == [sample["resps"][0][0] for sample in theirs["samples"]["say"]]


def test_few_shot_examples_are_drawn_alike(model, tiny, lm_evals, tmp_path):
    """Unless the seed says otherwise."""
    rows = [{"q": f"question {number}", "right": number % 2} for number in range(12)]
    one = local(
        tmp_path, "drawn", {"test": rows, "training": rows}, output_type="multiple_choice", num_fewshot=3,
        doc_to_text="{{q}}", doc_to_target="right", doc_to_choice=["no", "yes"], metric_list=measured("acc"),
    )  # fmt: skip
    theirs = lm_evals([one], limit=6)
    task = TASKS.load("harness")
    wanted = [sample["arguments"][0][0] for sample in theirs["samples"]["drawn"]]
    for seed, alike in ((1234, True), (1, False)):
        config = task.Config(tasks=[one], limit=6, seed=seed)
        (result,) = task.run(PlainEngine(model, tiny), [], config, screen=Silent())
        assert ([item.prompt_text for item in result.items] == wanted) is alike
    assert len(wanted) == 6
