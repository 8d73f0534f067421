"""An engine as a language model of the lm-evaluation-harness, asked in the very tokens that its own HFLM would read.

Followed to the token, in its version 0.4.13: ``lm_eval.api.model.TemplateLM`` and ``lm_eval.models.huggingface.HFLM``.
"""

from __future__ import annotations

import io
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunekit.core.errors import DataError, Problem, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.evaluate.contract import Engine, Likelihood, Prompt
from tunekit.evaluate.extras import need

WHAT = "the task 'harness'"
LENGTH = 2048  # tokens, of a model whose length is known from nowhere
NEW_TOKENS = 256  # the longest answer where the task does not say
UNSET = 10**9  # a tokenizer that knows no length says 10**30
DRAWING = ("top_k", "min_p", "typical_p")  # of no effect where nothing is drawn
NEUTRAL: Mapping[str, Any] = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "num_beams": 1, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Writer:
    """Writes the harness's texts as requests.

    Args:
        tokenizer: the model's.
        positions: how many tokens the model reads; None where it has no bound: the harness's own default then.
        seed: of drawn answers.
    """

    tokenizer: Any
    positions: int | None
    seed: int = 0

    @cached_property
    def length(self) -> int:
        """How many tokens a request may read."""
        known = self.tokenizer.model_max_length if self.positions is None else self.positions
        return int(known) if known is not None and known < UNSET else LENGTH

    @cached_property
    def first(self) -> int:
        """The token that stands before a text that has nothing before it.

        Raises:
            UserError: the tokenizer has none.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UserError("the tokenizer has neither a first nor an end token, which the harness puts before texts")

    def encoded(self, texts: Iterable[str], begins: str | None) -> dict[str, list[int]]:
        """Token ids of each text; special tokens are not added to one that begins with ``begins`` already."""
        unique = list(dict.fromkeys(texts))
        written = [begins is not None and text.startswith(begins) for text in unique]
        found = self._ids([text for text, whole in zip(unique, written) if not whole])
        return found | self._ids([text for text, whole in zip(unique, written) if whole], add_special_tokens=False)

    def likelihoods(self, pairs: Sequence[tuple[str, str]], places: Sequence[str]) -> tuple[list[Likelihood], int]:
        """Each continuation scored after its context, and how many contexts were cut at their beginning.

        White space at the end of a context belongs to the continuation. The continuation is what the tokens of both
        together have beyond the number of the context's own; those, and not the beginning of both, are read before
        it. As the last token is scored only, a request may have one more than the model reads.

        Raises:
            DataError: a continuation has no tokens, or more than the model reads.
        """
        moved = [_moved(context, target) for context, target in pairs]
        both = [text for bare, target in moved if bare is not None for text in (bare, bare + target)]
        ids = self.encoded(both, self.tokenizer.decode(self.first))
        alone = self._ids([target for bare, target in moved if bare is None], add_special_tokens=False)
        requests, problems = [], []
        cut = 0
        for (bare, target), place in zip(moved, places, strict=True):
            if bare is not None:
                before, after = ids[bare] or [self.first], ids[bare + target][len(ids[bare]) :]
            elif alone[target][:1] == [self.first]:
                before, after = alone[target][:1], alone[target][1:]
            else:
                before, after = [self.first], alone[target]
            if not 0 < len(after) <= self.length:
                what = f"{target!r}, to be scored, has {len(after)} tokens of its own; the model reads {self.length}"
                problems.append(Problem(what, place))
            cut += len(before) + len(after) > self.length + 1
            requests.append(self._request([*before, *after], len(after)))
        raise_all(DataError, problems)
        return requests, cut

    def windows(self, texts: Sequence[str]) -> tuple[list[Likelihood], list[int]]:
        """Whole texts in pieces as long as the model reads, each token scored once; and how many pieces each has."""
        utils = need("lm_eval.utils", "harness", WHAT)
        ids = self.encoded(texts, self.tokenizer.decode(self.first))
        requests, counts = [], []
        for text in texts:
            pieces = utils.get_rolling_token_windows(
                token_list=ids[text], prefix_token=self.first, max_seq_len=self.length, context_len=1
            )
            found = [utils.make_disjoint_window(piece) for piece in pieces]
            requests += [self._request([*before, *after], len(after)) for before, after in found]
            counts.append(len(found))
        return requests, counts

    def prompts(self, asked: Sequence[tuple[str, dict[str, Any]]], places: Sequence[str]) -> tuple[list[Prompt], int]:
        """Texts to go on from, and how many were cut at their beginning to leave room for the answer.

        A text asked several times is drawn anew each time.

        Raises:
            UserError: the task asks for settings that tunekit has not, or for answers as long as the model.
        """
        ids = self.encoded((context for context, _ in asked), self.tokenizer.bos_token)
        times: Counter[str] = Counter()
        requests, cut = [], 0
        for (context, settings), place in zip(asked, places, strict=True):
            options = self.settings(settings, place)
            room = self.length - options["max_new_tokens"]
            if room <= 0:
                what = f"an answer of {options['max_new_tokens']} tokens leaves no room for a prompt: "
                fix = "set a smaller max_gen_toks under generation"
                raise UserError(f"{what}the model reads {self.length}", where=place, fix=fix)
            own = ids[context] or [self.first]
            cut += len(own) > room
            requests.append(Prompt(tuple(own[-room:]), seed=self.seed + times[context], **options))
            times[context] += 1
        return requests, cut

    def settings(self, asked: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The harness's settings of generation in ours; the text of the end token ends an answer too.

        Raises:
            UserError: a setting that tunekit has not, or drawing at temperature 0.
        """
        utils = need("lm_eval.models.utils", "harness", WHAT)
        known = dict(utils.normalize_gen_kwargs(dict(asked), NEW_TOKENS))
        end = self.tokenizer.eos_token_id
        stops = utils.handle_stop_sequences(known.pop("until"), None if end is None else self.tokenizer.decode(end))
        tokens, drawn = known.pop("max_gen_toks"), known.pop("do_sample")
        temperature, top_p = float(known.pop("temperature", 0.0)), float(known.pop("top_p", None) or 1.0)
        if drawn and temperature <= 0:
            fix = "set temperature, or do_sample: false, under generation"
            raise UserError("the task draws its answers (do_sample) at temperature 0", where=place, fix=fix)
        for key, value in known.items():
            if value is not None and value != NEUTRAL.get(key) and (drawn or key not in DRAWING):
                fix = "tunekit has until, max_gen_toks, do_sample, temperature and top_p"
                fix += f"; set {key}: {NEUTRAL[key]} under generation" if key in NEUTRAL else ""
                raise UserError(f"the task asks for generation with {key}: {value!r}", where=place, fix=fix)
        stops = tuple(dict.fromkeys(str(stop) for stop in stops if stop))
        drawing = {"temperature": temperature, "top_p": top_p} if drawn else {}
        return {"max_new_tokens": tokens, "stops": stops, **drawing}

    def _ids(self, texts: Sequence[str], **options: bool) -> dict[str, list[int]]:
        found = self.tokenizer(list(texts), verbose=False, **options)["input_ids"] if texts else []
        return dict(zip(texts, found, strict=True))

    def _request(self, ids: Sequence[int], scored: int) -> Likelihood:
        kept = tuple(ids[-(self.length + 1) :])
        return Likelihood(kept, (False,) * (len(kept) - scored) + (True,) * scored)


def language_model(engine: Engine, screen: Screen, *, seed: int = 0) -> Any:
    """An ``lm_eval.api.model.LM`` that asks ``engine``; its methods raise what `Writer` and `conversation` do."""
    base: Any = need("lm_eval.api.model", "harness", WHAT).LM
    tokenizer = engine.tokenizer
    writer = Writer(tokenizer, engine.positions, seed)
    told: set[str] = set()

    def warn(text: str) -> None:
        if text not in told:
            told.add(text)
            screen.warn(text)

    def warn_of_cuts(cut: int, asked: Sequence[Any]) -> None:
        if cut:
            warn(f"{cut} of {len(asked)} texts are cut at their beginning to fit the model's {writer.length} tokens")

    class Asked(base):
        """The engine in the harness's words."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            asked, cut = writer.likelihoods([request.args[:2] for request in requests], _places(requests))
            warn_of_cuts(cut, asked)
            return [(found.value, found.greedy) for found in engine.likelihoods(asked, screen, "harness: choices")]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            asked, counts = writer.windows([request.args[0] for request in requests])
            values = iter([found.value for found in engine.likelihoods(asked, screen, "harness: texts")])
            return [float(sum(next(values) for _ in range(count))) for count in counts]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            asked, cut = writer.prompts([request.args[:2] for request in requests], _places(requests))
            warn_of_cuts(cut, asked)
            return [found.text for found in engine.generate(asked, screen, "harness: answers")]

        @property
        def tokenizer_name(self) -> str:
            return str(tokenizer.name_or_path).replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return tokenizer.chat_template if chat_template else None

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return conversation(tokenizer, chat_history, add_generation_prompt, warn)

    return Asked()


def conversation(tokenizer: Any, messages: list[dict[str, str]], begin: bool, warn: Callable[[str], None]) -> str:
    """A conversation as text; a template that takes no system message is asked again without it, with a warning.

    Args:
        tokenizer: the model's.
        messages: with role and content.
        begin: end with the beginning of an answer; else the last message is an answer to go on with.
        warn: is told when the system message was left out.

    Raises:
        UserError: the template does not take the conversation.
    """
    from jinja2.exceptions import TemplateError

    options = {"tokenize": False, "add_generation_prompt": begin, "continue_final_message": not begin}
    plain = [message for message in messages if message["role"] != "system"]
    try:
        return str(tokenizer.apply_chat_template(messages, **options))
    except TemplateError as error:
        if plain == messages:
            raise UserError(f"the chat template refuses the conversation: {error}", fix="chat: false") from error
    warn("the chat template takes no system message: the tasks' descriptions are left out")
    return conversation(tokenizer, plain, begin, warn)


@dataclass(frozen=True, slots=True)
class Document:
    """A row of a task, as people see it."""

    where: str
    prompt_text: str
    reference: str


def place_of(task: str | None, document: int | None) -> str:
    """What a row of the harness is called: ``piqa, document 7``, counted from 0 as the harness does."""
    return f"{task}, document {document}"


def document(name: str, row: Mapping[str, Any]) -> Document:
    """A row of what the harness logs of the task ``name``."""
    asked, target = row["arguments"], row["target"]
    if isinstance(target, int) and 0 <= target < len(asked) and isinstance(asked[target][-1], str):
        target = asked[target][-1].strip()  # the right choice
    return Document(place_of(name, row["doc_id"]), str(asked[0][0]), str(target))


@contextmanager
def apart() -> Iterator[None]:
    """What the harness prints is not shown inside, and the random states are as before afterwards."""
    import datasets
    import numpy as np

    defaults = need("lm_eval.defaults", "harness", WHAT)
    log = logging.getLogger("lm_eval")
    states, level, quiet = (random.getstate(), np.random.get_state()), log.level, datasets.are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    random.seed(defaults.DEFAULT_RANDOM_SEED)  # as the harness does: some tasks shuffle while they are loaded
    np.random.seed(defaults.DEFAULT_OTHER_SEED)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        log.setLevel(level)
        if not quiet:
            datasets.enable_progress_bars()


def _places(requests: Sequence[Any]) -> list[str]:
    return [place_of(request.task_name, request.doc_id) for request in requests]


def _moved(context: str, target: str) -> tuple[str | None, str]:
    """White space at the end of the context goes to the target; None for no context at all."""
    bare = context.rstrip()
    return (bare, context[len(bare) :] + target) if context else (None, target)
