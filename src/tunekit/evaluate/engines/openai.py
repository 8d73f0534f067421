"""A model behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from tunekit.core.errors import UserError, first_line
from tunekit.core.progress import Screen
from tunekit.evaluate.contract import Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.endpoint import Address, Client, Path, Refused, text_of
from tunekit.evaluate.writer import Writer

_STOPS = 4  # as many stop texts as OpenAI's interface takes


class Config(Address):
    """Options of the engine."""

    model: str | None = Field(None, description="the model's name at the server, where it is another than `model.name`")
    api: Literal["chat", "completions"] = Field(
        "chat", description="chat sends conversations; completions sends plain text, for models without a template"
    )
    tokenizer: str | None = Field(
        None, description="local folder or Hub id of the model's tokenizer, for likelihoods and for tokenized prompts"
    )


@contextmanager
def open(config: Config, name: str, screen: Screen) -> Iterator[OpenAIEngine]:
    """The engine, once the server has answered.

    Raises:
        UserError: the key is not in the environment, or there is no such tokenizer.
        MachineError: the server is not there, or refuses the key.
    """
    client = Client(config, config.model or name)
    client.reach()
    yield OpenAIEngine(client, config.api, _tokenizer(config.tokenizer))


def identity(config: Config, name: str) -> list[str | None]:
    """What tells this model's kept answers from others'; nobody tells when a server changes what is behind a name."""
    return [config.url, config.model or name, config.api, config.tokenizer]


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        what = f"no tokenizer in '{name}': {first_line(error)}"
        raise UserError(what, fix="tokenizer: a local folder or a Hub id") from error


class OpenAIEngine(Writer):
    """An `Engine` that asks a server.

    Args:
        client: where it asks.
        api: how prompts that are given as a conversation are sent.
        tokenizer: of transformers, or None: then prompts must be given as conversations.
    """

    def __init__(self, client: Client, api: Literal["chat", "completions"], tokenizer: Any = None) -> None:
        self._client, self._api, self._tokenizer = client, api, tokenizer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the recipe names; None when it names none."""
        return self._tokenizer

    @property
    def positions(self) -> int | None:
        """Not known: a server refuses what is too long for it."""
        return None

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """Answers prompts; the number of tokens is the server's own count, 0 where it gives none.

        Raises:
            UserError: the server does not take a request, or a prompt has neither a conversation nor a tokenizer.
            MachineError: the server fails.
        """
        bodies = [self._body(request) for request in requests]
        found = self._all(
            lambda index: self._answer(requests[index], *bodies[index]), len(requests), screen, what, done
        )
        if empty := sum(not answer.text for answer in found):
            screen.warn(f"{what}: {empty} of {len(found)} answers of {self._client.model} are empty")
        return found

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """Scores texts, where the server echoes a prompt with its log-probabilities, as vLLM's does.

        Raises:
            UserError: the server does not, no tokenizer is named, or the named one is not the model's.
            MachineError: the server fails.
        """
        if self._tokenizer is None:
            raise UserError(
                f"{what}: likelihoods need the model's tokenizer, and the recipe names none",
                fix="tokenizer: a local folder or a Hub id",
            )
        return self._all(lambda index: self._score(requests[index]), len(requests), screen, what, done)

    def _all(
        self, work: Callable[[int], Any], count: int, screen: Screen, what: str, done: Callable[[int, Any], None]
    ) -> list[Any]:
        found: list[Any] = [None] * count
        with screen.step(what, count, "requests") as step:
            for index, answer in self._client.each(work, count):
                found[index] = answer
                done(index, answer)
                step.advance()
        return found

    def _body(self, request: Prompt) -> tuple[Path, dict[str, Any]]:
        body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            body |= {"top_p": request.top_p, "seed": request.seed}
        if request.stops:
            body["stop"] = list(request.stops[:_STOPS])
        if request.messages and self._api == "chat":
            messages = [{"role": role, "content": content} for role, content in request.messages]
            return "/chat/completions", body | {"messages": messages}
        return "/completions", body | {"prompt": self._text(request)}

    def _text(self, request: Prompt) -> str:
        """A prompt as text; without its first token where that is the one that the server sets before any text."""
        if request.ids and self._tokenizer is not None:
            first = self._tokenizer.bos_token_id
            ids = request.ids[1:] if first is not None and request.ids[0] == first else request.ids
            return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if len(request.messages) == 1:
            return request.messages[0][1]
        raise UserError(
            "a prompt of tokens cannot be sent as text without the model's tokenizer",
            fix="tokenizer: a local folder or a Hub id; or api: chat",
        )

    def _answer(self, request: Prompt, path: Path, body: dict[str, Any]) -> Generated:
        choice = self._client.ask(path, body)
        text = text_of(choice)
        ends = [place for stop in request.stops if (place := text.find(stop)) >= 0]
        return Generated(
            text[: min(ends)] if ends else text,
            int(choice["usage"].get("completion_tokens") or 0),
            bool(ends) or choice.get("finish_reason") != "length",
        )

    def _score(self, request: Likelihood) -> Scored:
        """One new token is asked for beside the echo: not every server can do with none."""
        body = {"prompt": list(request.ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            choice = self._client.ask("/completions", body)
        except Refused as error:
            raise self._cannot_score(str(error)) from error
        told = choice.get("logprobs") or {}
        chances, best = told.get("token_logprobs") or [], told.get("top_logprobs") or []
        length = len(request.ids)
        # a server that does not know `echo` passes over it, and gives the new token's chance alone
        if len(chances) not in (length, length + 1) or len(best) != len(chances):
            raise self._cannot_score(f"{len(chances)} log-probabilities came back for {length} tokens")
        places = [place for place, scored in enumerate(request.scored) if scored]
        if any(not isinstance(chances[place], int | float) for place in places):
            raise self._cannot_score("a token of the prompt came back without its log-probability")
        self._same_tokens(request.ids, told.get("tokens") or ())
        greedy = all(chances[place] >= max((best[place] or {}).values(), default=0.0) for place in places)
        return Scored(float(sum(chances[place] for place in places)), len(places), greedy)

    def _same_tokens(self, ids: Sequence[int], tokens: Sequence[Any]) -> None:
        """Another model's tokenizer would give numbers that mean nothing, and no error."""
        own = [self._tokenizer.decode([token]).strip() for token in ids]
        pairs = [(one, str(other).strip()) for one, other in zip(own, tokens, strict=False) if one and one.isascii()]
        if pairs and sum(one == other for one, other in pairs) * 2 < len(pairs):
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            what = (
                f"the tokenizer is not that of {self._client.model}: what it calls {one!r} is {other!r} to the server"
            )
            raise UserError(what, fix="tokenizer: the one of the model that the server runs")

    def _cannot_score(self, why: str) -> UserError:
        return UserError(
            f"the server of {self._client.model} cannot score likelihoods: {why}",
            fix="tasks that only generate answers, such as generation and judge, can be done with it; for likelihoods "
            "use vLLM's server or a model that is loaded here",
        )
