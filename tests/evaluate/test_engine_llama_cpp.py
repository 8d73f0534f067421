"""A .gguf file as an engine: transformers' likelihoods, llama.cpp's own greedy answers, draws by their seeds, stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.evaluate import gguf_file
from tunekit.evaluate.contract import Likelihood, Prompt
from tunekit.evaluate.engines import llama_cpp as module
from tunekit.model.names import TINY

IDS = tuple((7 * i * i + 11 * i) % 2000 for i in range(60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model as 32-bit floats: what differs from transformers is rounding alone."""
    pytest.importorskip("gguf", reason="gguf is an extra package")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra package, built from source")
    from tunekit.compress.backends import gguf
    from tunekit.compress.contract import Making

    place = tmp_path_factory.mktemp("gguf")
    gguf.make(Making("f32", gguf.Config(), Path(TINY), place, (), 0))
    return place


@pytest.fixture(scope="module")
def embedded():
    """The embedded tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def engine(folder, embedded):
    with module.open(module.Config(threads=1), str(folder), Silent(), embedded) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(embedded):
    """The same model in transformers, in 32-bit floats."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunekit.evaluate.local import TransformersEngine

    return TransformersEngine(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval(), embedded)


def chat(embedded, question):
    turns = [{"role": "user", "content": question}]
    text = embedded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tuple(embedded(text, add_special_tokens=False)["input_ids"])


def test_likelihoods_are_transformers(engine, reference):
    """Whole texts, ends of texts, one token, one that begins as the last one did, and a long one."""
    flags = [False] + [True] * 59
    requests = [
        Likelihood(IDS, tuple(flags)),
        Likelihood(IDS, (False,) * 50 + (True,) * 10),
        Likelihood((*IDS[:40], 5, 6, 7), (False,) * 40 + (True, False, True)),
        Likelihood(IDS[:2], (False, True)),
        Likelihood(IDS[:41] * 8, (False, *(True,) * 327)),
    ]
    told = []
    found = engine.likelihoods(requests, Silent(), "x", lambda index, answer: told.append((index, answer)))
    wanted = reference.likelihoods(requests, Silent(), "x")
    assert told == list(enumerate(found))
    print(f"measured: {[one.value - other.value for one, other in zip(found, wanted, strict=True)]}")
    for one, other in zip(found, wanted, strict=True):
        assert (one.tokens, one.greedy) == (other.tokens, other.greedy)
        assert one.value == pytest.approx(other.value, abs=0.01 * one.tokens)  # the cache is in 16 bits


def test_what_texts_begin_with_alike_is_read_once_and_changes_nothing(folder, embedded, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 32)
    read = []
    feed = gguf_file.Opened.feed

    def counted(self, ids, *given, **more):
        read.append(len(ids))
        return feed(self, ids, *given, **more)

    monkeypatch.setattr(gguf_file.Opened, "feed", counted)
    ends = [(*IDS, one, 9) for one in (5, 6, 7)] + [(*IDS[:40], 8, 9)]
    asked = [Likelihood(ids, (False,) * (len(ids) - 2) + (True, True)) for ids in ends]
    prompts = [Prompt(ids, 3) for ids in ends]
    with module.open(module.Config(threads=1), str(folder), Silent(), embedded) as opened:
        together = opened.likelihoods(asked, Silent(), "x"), opened.generate(prompts, Silent(), "x")
        assert sum(read) < sum(map(len, ends)) * 1.6, read  # 32 of each but the first stand in the cache
    alone = [], []
    for one, prompt in zip(asked, prompts, strict=True):
        with module.open(module.Config(threads=1), str(folder), Silent(), embedded) as opened:
            alone[0].extend(opened.likelihoods([one], Silent(), "x"))
        with module.open(module.Config(threads=1), str(folder), Silent(), embedded) as opened:
            alone[1].extend(opened.generate([prompt], Silent(), "x"))
    assert together == alone  # to the last bit


def test_the_likeliest_continuation_is_greedy(engine, embedded):
    ids = chat(embedded, "What is three plus four?")
    (answer,) = engine.generate([Prompt(ids, 4)], Silent(), "x")
    own = embedded(answer.text, add_special_tokens=False)["input_ids"]
    right, wrong = ((*ids, *own), (*ids, *own[:-1], 7))
    scored = (False,) * len(ids) + (True,) * len(own)
    greedy, other = engine.likelihoods([Likelihood(right, scored), Likelihood(wrong, scored)], Silent(), "x")
    assert greedy.greedy and not other.greedy and other.value < greedy.value


def test_greedy_answers_are_those_of_the_proof(engine, folder, embedded, reference):
    """`Reading.answer`, by which quantize compares, and transformers' own."""
    from tunekit.compress.runtimes import llama_cpp as runtime

    reading = runtime.load(folder, threads=1)
    prompts = [chat(embedded, question) for question in ("Who are you?", "What is three plus four?", "Name a colour.")]
    found = engine.generate([Prompt(ids, 24) for ids in prompts], Silent(), "x")
    wanted = reference.generate([Prompt(ids, 24) for ids in prompts], Silent(), "x")
    for ids, one, other in zip(prompts, found, wanted, strict=True):
        written = reading.answer(ids, 24, reading.stops())
        assert one.text == embedded.decode(written, skip_special_tokens=True) == other.text
        assert one.ended == (written[-1] in reading.stops()) and one.tokens == len(written) - one.ended
    assert found == wanted and all(answer.ended for answer in found)


def test_an_answer_that_is_cut_off_has_not_ended(engine, embedded):
    ids = chat(embedded, "Who are you?")
    whole, cut = engine.generate([Prompt(ids, 24), Prompt(ids, 2)], Silent(), "x")
    assert whole.ended and not cut.ended and cut.tokens == 2 and whole.text.startswith(cut.text)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(engine, embedded):
    ids = chat(embedded, "Who are you?")
    (whole,) = engine.generate([Prompt(ids, 24)], Silent(), "x")
    stop = whole.text[len(whole.text) // 2 :][:3]
    (found,) = engine.generate([Prompt(ids, 24, (stop,))], Silent(), "x")
    assert found.ended and found.text == whole.text[: whole.text.index(stop)] and found.tokens < whole.tokens


def test_draws_are_their_seeds_and_near_transformers(engine, embedded, reference):
    ids = chat(embedded, "Tell me something.")
    asked = [Prompt(ids, 16, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    first, second, third = engine.generate(asked, Silent(), "x")
    assert first == third != second
    assert engine.generate(asked[1:2], Silent(), "x") == [second]
    narrow = engine.generate([Prompt(ids, 16, temperature=5.0, top_p=1e-6, seed=3)], Silent(), "x")
    assert narrow == engine.generate([Prompt(ids, 16)], Silent(), "x")  # the likeliest token alone is left
    assert [first, second] == reference.generate(asked[:2], Silent(), "x")  # the same draws from the same chances


def test_a_text_longer_than_the_model_reads_is_refused(folder, embedded):
    with module.open(module.Config(threads=1, max_length=20), str(folder), Silent(), embedded) as short:
        assert short.positions == 20
        with pytest.raises(DataError, match="longer than the model's 20 positions"):
            short.likelihoods([Likelihood(IDS, (False,) + (True,) * 59)], Silent(), "x")
        with pytest.raises(DataError, match="longer than the model's 20 positions"):
            short.generate([Prompt(IDS[:20], 4)], Silent(), "x")
        (answer,) = short.generate([Prompt(IDS[:15], 50)], Silent(), "x")
        assert answer.tokens <= 5


def test_the_model_was_trained_on_so_many_positions(engine):
    known = json.loads((Path(TINY) / "config.json").read_text())["max_position_embeddings"]
    assert engine.positions == known


def test_scores_are_refused(engine):
    with pytest.raises(UserError, match="which a model that writes does not give"):
        engine.scores([], Silent(), "preference")


def test_the_files_own_vocabulary_writes_what_the_tokenizer_writes(folder, embedded):
    """Texts of columns, chats and answers, without a tokenizer of transformers."""
    from tunekit.evaluate.prompting import Prompter

    with module.open(module.Config(threads=1), str(folder), Silent()) as opened:
        own = opened.tokenizer
        for text in ("The dog of Anna sleeps.", "x = 3 + 4\n", "你好"):
            for special in (False, True):
                wanted = embedded(text, add_special_tokens=special)["input_ids"]
                assert own(text, add_special_tokens=special)["input_ids"] == wanted
            ids = own(text)["input_ids"]
            assert own.decode(ids, skip_special_tokens=True) == embedded.decode(ids, skip_special_tokens=True)
        assert (own.bos_token_id, own.eos_token_id) == (embedded.bos_token_id, embedded.eos_token_id)
        assert own.eos_token == embedded.eos_token and own(["a", "b"])["input_ids"] == embedded(["a", "b"])["input_ids"]
        one, other = (Prompter(words, chat=True) for words in (own, embedded))
        assert one.prompt("Who are you?", 4).ids == other.prompt("Who are you?", 4).ids
        assert Prompter(own).likelihood("A dog", " sleeps") == Prompter(embedded).likelihood("A dog", " sleeps")


def test_another_models_tokenizer_is_refused(folder, embedded):
    class Shifted:
        """The same tokens under other numbers."""

        def __len__(self):
            return len(embedded)

        def decode(self, ids):
            return embedded.decode([(index + 1) % len(embedded) for index in ids])

    class Longer(Shifted):
        def __len__(self):
            return 10_000

    for wrong, told in ((Shifted(), "the tokenizer is not that of model-f32.gguf"), (Longer(), "10,000 tokens")):
        with pytest.raises(UserError, match=told), module.open(module.Config(), str(folder), Silent(), wrong):
            pass


def test_answers_are_told_apart_by_the_files_bytes(folder, tmp_path):
    config = module.Config()
    first = module.identity(config, str(folder))
    path = next(folder.glob("*.gguf"))
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    assert module.identity(config, str(copy)) == first == module.identity(config, str(path))
    assert module.identity(module.Config(max_length=50), str(copy)) != first
    spoiled = bytearray(path.read_bytes())
    spoiled[-1] ^= 1
    copy.write_bytes(bytes(spoiled))
    assert module.identity(config, str(copy)) != first


def test_without_the_package_the_line_that_installs_it_is_given(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="llama-cpp-python") as error, module.open(module.Config(), "x", Silent()):
        pass
    assert error.value.fix == "pip install 'tunekit[gguf]'"


def test_what_a_name_means(tmp_path):
    """A file, the folder of one, a split one by its first part; several, none, and another model's folder."""
    one = tmp_path / "one"
    one.mkdir()
    assert gguf_file.find(one) is None and gguf_file.find(tmp_path / "nowhere") is None
    (one / "model.gguf").write_bytes(b"GGUF")
    assert gguf_file.find(one) == gguf_file.find(one / "model.gguf") == one / "model.gguf"
    (one / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds 2 \.gguf files: model\.gguf, other\.gguf"):
        gguf_file.find(one)
    (one / "config.json").write_text("{}")
    assert gguf_file.find(one) is None
    with pytest.raises(UserError, match="there is no such file"):
        gguf_file.find(tmp_path / "nowhere.gguf")
    split = tmp_path / "split"
    split.mkdir()
    names = [f"m[1]-{part:05}-of-00002.gguf" for part in (1, 2)]
    for name in names:
        (split / name).write_bytes(b"GGUF")
    assert gguf_file.find(split) == split / names[0]
    assert [path.name for path in gguf_file.parts(split / names[0])] == names


def test_a_file_that_is_none_is_told(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra package, built from source")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with (
        pytest.raises(MachineError, match=r"llama\.cpp cannot load the file"),
        module.open(module.Config(), str(tmp_path / "broken.gguf"), Silent()),
    ):
        pass
    place = str(tmp_path / "x")
    with pytest.raises(UserError, match=r"is no \.gguf file"), module.open(module.Config(), place, Silent()):
        pass


@pytest.fixture
def examined(folder, tmp_path, monkeypatch):
    """An evaluation of the file, on questions of the embedded world."""
    from tunekit.data import world
    from tunekit.exam.job import Job
    from tunekit.exam.recipe import check
    from tunekit.recipe.document import parse

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = tmp_path / "questions.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in world.rows("instructions", "held_out", 6)))

    def run(target="evaluation", **value):
        given = {"model": str(folder), "data": [{"path": str(rows)}], "contamination": {"check": False}}
        exam = check(parse(json.dumps(given | value), "eval.yaml"))
        return Job(exam, Path(), tmp_path / target, Silent()).run()

    return run


TASKS = [{"kind": "perplexity"}, {"kind": "generation", "max_new_tokens": 8}]


def test_a_file_is_evaluated_beside_what_it_was_made_of(examined, folder):
    """Its engine is chosen by itself, its baseline's is transformers, and prompts are in the baseline's words."""
    from tunekit.exam.answers import stores

    record = examined(tasks=TASKS, baseline="builtin:tiny")
    assert (record.models.tuned.kind, record.models.baseline.kind) == ("GGUF file", "builtin model")
    perplexity, generation = record.tasks
    assert perplexity.n == generation.n == 6
    assert perplexity.tuned.value == pytest.approx(perplexity.base.value, rel=0.02)  # bfloat16 there
    assert generation.tuned.value == generation.base.value and generation.difference.value == 0
    assert len(stores()) == 2
    (path,) = folder.glob("*.gguf")
    again = examined("again", model=str(path), tasks=TASKS, engine={"kind": "llama_cpp", "tokenizer": str(TINY)})
    assert again.models.baseline is None and again.tasks[0].tuned == perplexity.tuned
    assert len(stores()) == 2, "the same bytes, read with the same words"
    other = examined("other", model="builtin:tiny", baseline=str(folder), tasks=TASKS)
    assert other.tasks[0].base == perplexity.tuned and other.tasks[0].tuned == perplexity.base


def test_without_words_columns_can_be_asked_and_prompts_cannot(examined):
    columns = {"kind": "questions", "prompt": "{instruction}", "reference": "output", "chat": True, "max_new_tokens": 8}
    (alone,) = examined(tasks=[columns]).tasks
    (beside,) = examined("beside", tasks=[columns], baseline="builtin:tiny").tasks
    assert alone.tuned == beside.tuned
    with pytest.raises(UserError, match="writes prompts with the model's tokenizer") as error:
        examined("none", tasks=TASKS)
    assert "--baseline SOURCE" in error.value.fix and "tokenizer: ..." in error.value.fix


def test_another_model_through_this_engine_is_refused(examined, folder):
    with pytest.raises(UserError, match=r"'builtin:tiny' is no \.gguf file"):
        examined(model="builtin:tiny", engine={"kind": "llama_cpp"})
    with pytest.raises(UserError, match="on the disk, and has no revisions"):
        examined(revision="main")


def test_a_file_that_changed_since_it_was_made_is_refused(examined, folder, tmp_path, embedded):
    from tunekit.model.artefact import write_manifest

    place = tmp_path / "changed"
    place.mkdir()
    path = place / "model.gguf"
    path.write_bytes(next(folder.glob("*.gguf")).read_bytes())
    write_manifest(place, {}, embedded)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(MachineError, match="not as it was saved"):
        examined(model=str(place), baseline="builtin:tiny", tasks=TASKS)
