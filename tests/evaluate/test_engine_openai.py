import math
import socket
import threading
import time
import traceback
from email.utils import formatdate

import pytest
from fake_endpoint_for_tests import Reply, chat, completion, failure, serving
from pydantic import ValidationError

from tunekit.core.errors import MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.evaluate import endpoint
from tunekit.evaluate.contract import Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.endpoint import Address, Client, Refused
from tunekit.evaluate.engines import openai

KEY = "sk-very-secret-0123456789"
QUICK = {"backoff": 0.001, "retries": 2, "timeout": 5.0}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serving(lambda asked: chat(f"re: {asked.body['messages'][-1]['content']}")) as fake:
        yield fake


@pytest.fixture
def waits(monkeypatch):
    """How long the client waits between tries, without waiting."""
    found = []

    def wait(event, seconds):
        found.append(seconds)
        return False

    monkeypatch.setattr(endpoint._Here, "stopped", type("Never", (), {"wait": wait})())
    return found


def client(server, **changes):
    return Client(Address(url=server.url, **(QUICK | changes)), "m")


def hello(text="hi", **changes):
    return Prompt((), 5, messages=(("user", text),), **changes)


def engine(server, tokenizer=None, api="chat", **changes):
    return openai.OpenAIEngine(client(server, **changes), api, tokenizer)


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


# the address and the key


@pytest.mark.parametrize(
    "url", ["example.com/v1", "ftp://a/v1", "http://me:word@a/v1", "http://a/v1?key=1", "http:///v1", "file:///etc"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValidationError, match="an address is"):
        Address(url=url)


def test_the_key_written_in_the_place_of_its_name_is_not_repeated():
    with pytest.raises(ValidationError, match="never the key itself") as error:
        Address(url="http://a/v1", key_from=KEY)
    assert KEY not in str(error.value)


def test_a_key_that_is_not_set_is_an_error_before_anything_is_sent(server, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        client(server, key_from="MY_KEY")
    monkeypatch.setenv("MY_KEY", "two words")
    with pytest.raises(UserError, match="holds no key") as error:
        client(server, key_from="MY_KEY")
    assert "two words" not in str(error.value) and server.asked == []


def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    server.key = KEY
    asking = client(server, key_from="MY_KEY")
    assert engine(server, key_from="MY_KEY").generate([hello()], Silent(), "x")[0].text == "re: hi"
    server.key = "another"
    with pytest.raises(MachineError, match=r"refuses the key \(401\).*Bearer <MY_KEY>") as error:
        asking.ask("/chat/completions", {"messages": []})
    shown = "".join(traceback.format_exception(error.value)) + repr(vars(asking)) + error.value.fix
    assert KEY not in shown and "MY_KEY" in error.value.fix
    with pytest.raises(MachineError, match="401"):
        asking.reach()


def test_a_redirect_is_not_followed_for_the_key_would_go_along(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda asked: chat("stolen")) as elsewhere:
        server.script = [Reply("", 302, {"Location": f"{elsewhere.url}/chat/completions"})]
        with pytest.raises(MachineError, match=r"points elsewhere \(302\)"):
            client(server, key_from="MY_KEY").ask("/chat/completions", {})
        assert elsewhere.asked == []


# tries


def test_429_and_500_and_a_cut_answer_are_tried_again(server):
    cut = chat("half")
    cut.cut = True
    torn = chat("torn")
    torn.cut = torn.chunked = True
    server.script = [failure(429, "slow down"), failure(500, "oops"), cut, torn, Reply("<html>")]
    assert engine(server, retries=5).generate([hello()], Silent(), "x")[0].text == "re: hi"
    assert len(server.posts) == 6


def test_waiting_doubles_within_its_spread_and_has_an_end(server, waits):
    server.script = [failure(503, "busy")] * 20
    with pytest.raises(MachineError, match="failed 11 times, at last: 503 busy"):
        client(server, retries=10, backoff=1.0).ask("/chat/completions", {})
    bounds = [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert len(waits) == 10
    assert all(bound / 2 <= wait <= bound for bound, wait in zip(bounds, waits, strict=True))


def test_500_forever_ends_with_its_patience(server, waits):
    server.script = [failure(500, "no")] * 20
    with pytest.raises(MachineError, match="failed 3 times"):
        client(server, retries=19, backoff=4.0, patience=7.9).ask("/chat/completions", {})  # 4, 8 are at least 2, 4; 16
    assert len(waits) == 2


def test_retry_after_is_honoured_in_both_its_forms(server, waits):
    at = formatdate(time.time() + 20, usegmt=True)
    server.script = [failure(429, "a", Retry_After="7"), failure(503, "b", Retry_After=at)]
    client(server).ask("/chat/completions", {"messages": [{"content": "x"}]})
    assert waits[0] == 7 and 15 < waits[1] <= 20


def test_a_wait_beyond_the_patience_ends_at_once(server, waits):
    server.script = [failure(429, "come back tomorrow", Retry_After="86400")]
    with pytest.raises(MachineError, match="asks to wait 86400 s"):
        client(server).ask("/chat/completions", {})
    assert waits == []


@pytest.mark.parametrize("header", ["soon", "nan", "-4", ""])
def test_a_retry_after_that_says_nothing_is_passed_over(header):
    assert endpoint._after(header) == 0


def test_no_quota_is_no_reason_to_wait(server, waits):
    server.script = [Reply({"error": {"message": "You ran out", "code": "insufficient_quota"}}, 429)]
    with pytest.raises(MachineError, match="no quota left"):
        client(server).ask("/chat/completions", {})
    assert waits == []


def test_a_slow_answer_is_given_up(server):
    late = chat("late")
    late.wait_for = threading.Event()
    server.script = [late]
    with pytest.raises(MachineError, match=r"failed 1 times, at last: nothing within 0.1 s"):
        client(server, timeout=0.1, retries=0).ask("/chat/completions", {})
    late.wait_for.set()


def test_an_answer_that_trickles_is_given_up(monkeypatch):
    clock = iter([0.0, 0.4, 0.8, 1.2, 1.6])
    monkeypatch.setattr(endpoint.time, "monotonic", lambda: next(clock))
    with pytest.raises(TimeoutError):
        endpoint._read(type("Slow", (), {"read1": lambda self, most: b"x"})(), 1.0)


def test_an_endless_answer_is_given_up():
    with pytest.raises(MachineError, match="more than 64 MiB"):
        endpoint._read(type("Flood", (), {"read1": lambda self, most: bytes(1 << 24)})(), 60.0)


def test_a_chunked_answer_is_read(server):
    whole = chat("piece by piece")
    whole.chunked = True
    server.script = [whole]
    assert engine(server).generate([hello()], Silent(), "x")[0].text == "piece by piece"


# what is no use to try again


def test_no_server_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    config = openai.Config(url=url, **QUICK)
    with pytest.raises(MachineError, match=r"no answer from .*refused") as error, openai.open(config, "m", Silent()):
        pass
    assert "start the server" in error.value.fix


def test_a_server_that_is_loading_is_there(server, waits):
    server.models = failure(503, "loading")
    server.script = [failure(503, "loading")]
    with openai.open(openai.Config(url=server.url, **QUICK), "m", Silent()) as opened:
        assert opened.generate([hello()], Silent(), "x")[0].text == "re: hi"


def test_an_unknown_model_is_told_with_those_that_there_are(server):
    server.answer = lambda asked: failure(404, "The model `x` does not exist")
    config = openai.Config(url=server.url, model="x", **QUICK)
    with openai.open(config, "m", Silent()) as opened, pytest.raises(MachineError, match="know the model 'x'") as error:
        opened.generate([hello()], Silent(), "x")
    assert error.value.fix == "it offers: m, other"
    server.models = failure(404, "nothing here")
    with openai.open(config, "m", Silent()) as opened, pytest.raises(MachineError) as error:
        opened.generate([hello()], Silent(), "x")
    assert error.value.fix == "see `url` and the model's name"


def test_a_path_that_is_not_offered_is_told_from_an_unknown_model(server):
    server.answer = lambda asked: Reply("not found", 404)
    with pytest.raises(Refused, match="does not offer /completions"):
        client(server).ask("/completions", {"prompt": "a"})


def test_a_refused_request_is_not_repeated(server, waits):
    server.script = [failure(400, "temperature is not supported")]
    with pytest.raises(UserError, match="temperature is not supported") as error:
        client(server).ask("/chat/completions", {"temperature": 0})
    assert "omit" in error.value.fix and waits == [] and len(server.posts) == 1


def test_what_the_recipe_omits_is_not_sent(server):
    engine(server, omit=("temperature", "stop")).generate([hello(stops=("hi",))], Silent(), "x")
    assert "temperature" not in server.posts[0].body and "stop" not in server.posts[0].body


def test_an_answer_without_choices_is_an_error(server):
    server.script = [Reply({"ok": True})]
    with pytest.raises(MachineError, match="without `choices`"):
        client(server).ask("/chat/completions", {})


def test_the_newer_name_of_the_limit_is_used_where_it_is_wanted(server):
    wanted = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.script = [failure(400, wanted)]
    asking = engine(server, parallel=1)
    asking.generate([hello("a"), hello("b")], Silent(), "x")
    limits = [{k: v for k, v in asked.body.items() if k.startswith("max_")} for asked in server.posts]
    assert limits == [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}]


# many at once


def test_answers_keep_the_order_of_the_questions(server):
    last = threading.Event()

    def answer(asked):
        text = asked.body["messages"][-1]["content"]
        if text == "0":
            last.wait(5)  # the first question is answered when the last one has been
        if text == "19":
            last.set()
        return chat(text)

    server.answer = answer
    done = []
    asking = engine(server, parallel=4)
    told = asking.generate([hello(str(n)) for n in range(20)], Silent(), "x", lambda index, _: done.append(index))
    assert [answer.text for answer in told] == [str(n) for n in range(20)]
    assert sorted(done) == list(range(20)) and done[0] != 0
    assert 2 <= server.most <= 4


def test_one_failure_ends_the_rest(server):
    server.answer = lambda asked: failure(400, "no")
    with pytest.raises(Refused):
        engine(server, parallel=1).generate([hello(str(n)) for n in range(50)], Silent(), "x")
    assert len(server.posts) == 1


def test_a_failure_ends_the_waiting_of_the_others(server):
    waiting = threading.Event()

    def answer(asked):
        if asked.body["messages"][0]["content"] == "0":
            waiting.wait(5)
            return failure(400, "no")
        waiting.set()
        return failure(429, "later", Retry_After="100")

    server.answer = answer
    with pytest.raises(Refused):
        engine(server, parallel=2).generate([hello("0"), hello("1")], Silent(), "x")
    for thread in threading.enumerate():
        if thread.name.endswith("(labour)"):
            thread.join(5)
            assert not thread.is_alive()


def test_a_bug_in_a_thread_does_not_hang(server):
    threads = threading.excepthook
    threading.excepthook = lambda given: None
    try:
        with pytest.raises(AssertionError, match="request 0 ended without"):
            list(client(server).each(lambda index: 1 // 0, 1))
    finally:
        threading.excepthook = threads


# generation


def test_a_conversation_is_sent_as_one(server):
    server.script = [chat("half an ans", "length", 5)]
    prompt = Prompt((), 5, messages=(("system", "be"), ("user", "hi")), temperature=0.7, top_p=0.9, seed=3)
    assert engine(server).generate([prompt], Silent(), "x") == [Generated("half an ans", 5, False)]
    assert server.posts[0].path == "/v1/chat/completions"
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    drawn = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    assert server.posts[0].body == {"model": "m", "messages": messages, "max_tokens": 5, **drawn}


def test_greedy_answers_are_asked_for_without_a_seed(server):
    engine(server).generate([hello()], Silent(), "x")
    body = server.posts[0].body
    assert body["temperature"] == 0 and "seed" not in body and "top_p" not in body


def test_stops_end_an_answer_even_where_the_server_does_not_know_them(server):
    server.script = [chat("one; two\nthree", "length")]
    stops = ("\n", ";", "a", "b", "c")
    assert engine(server).generate([hello(stops=stops)], Silent(), "x") == [Generated("one", 3, True)]
    assert server.posts[0].body["stop"] == list(stops[:4])


def test_an_answer_without_content_is_empty_and_said_so(server):
    server.script = [chat(None, "length")]
    screen = Told()
    assert engine(server).generate([hello()], screen, "x") == [Generated("", 3, False)]
    assert screen.warnings == ["x: 1 of 1 answers of m are empty"]


def test_text_goes_to_completions_without_a_second_first_token(server, tokenizer):
    server.answer = lambda asked: completion("3")
    ids = tuple(tokenizer.encode("<s>1+2=", add_special_tokens=False))
    assert engine(server, tokenizer).generate([Prompt(ids, 4)], Silent(), "x")[0].text == "3"
    assert server.posts[0].path == "/v1/completions" and server.posts[0].body["prompt"] == "1+2="


def test_text_without_a_tokenizer(server):
    server.answer = lambda asked: completion("ok")
    assert engine(server, api="completions").generate([hello("go on")], Silent(), "x")[0].text == "ok"
    assert server.posts[0].body["prompt"] == "go on"
    with pytest.raises(UserError, match="cannot be sent as text"):
        engine(server).generate([Prompt((1, 2), 4)], Silent(), "x")


# likelihoods

IDS = (1, 5, 14, 6, 15)  # <s> 1 + 2 =, as the tests' tokenizer numbers them
SCORED = (False, False, False, True, True)


def echoed(tokens=("<s>", "1", "+", "2", "="), chances=(None, -1.0, -2.0, -0.5, -0.25), best=-0.25, extra=True):
    chances = [*chances, -9.0] if extra else list(chances)
    tops = [None, *({"best": max(best, chance or best)} for chance in chances[1:])]
    words = [*tokens, "x"] if extra else list(tokens)
    return completion("", logprobs={"tokens": words, "token_logprobs": chances, "top_logprobs": tops})


@pytest.mark.parametrize("extra", [True, False], ids=["with a new token", "echo alone"])
def test_likelihoods_are_sums_over_the_scored_tokens(server, tokenizer, extra):
    server.answer = lambda asked: echoed(extra=extra)
    found = engine(server, tokenizer).likelihoods([Likelihood(IDS, SCORED)], Silent(), "x")
    assert found == [Scored(-0.75, 2, False)]  # -0.5 is not the likeliest: -0.25 was to be had
    body = server.posts[0].body
    assert body["prompt"] == list(IDS) and body["echo"] is True and body["logprobs"] == 1


def test_greedy_where_every_scored_token_is_the_likeliest(server, tokenizer):
    server.answer = lambda asked: echoed(best=-0.5)
    found = engine(server, tokenizer).likelihoods([Likelihood(IDS, SCORED)], Silent(), "x")
    assert found[0].greedy and math.isclose(found[0].value, -0.75)


NOT_SCORED = {
    "refused": failure(400, "echo is not supported"),
    "echo passed over": completion("", logprobs={"tokens": ["x"], "token_logprobs": [-9.0], "top_logprobs": [{}]}),
    "no logprobs": completion("", logprobs=None),
    "holes": echoed(chances=(None, -1.0, -2.0, None, -0.25)),
    "no path": Reply("not found", 404),
}


@pytest.mark.parametrize("reply", NOT_SCORED.values(), ids=NOT_SCORED)
def test_a_server_that_cannot_score_says_so_and_what_it_can(server, tokenizer, reply):
    server.answer = lambda asked: reply
    with pytest.raises(UserError, match="cannot score likelihoods") as error:
        engine(server, tokenizer).likelihoods([Likelihood(IDS, SCORED)], Silent(), "x")
    assert "only generate answers" in error.value.fix


def test_the_tokenizer_of_another_model_is_found_out(server, tokenizer):
    server.answer = lambda asked: echoed(tokens=("The", " quick", " brown", " fox", "."))
    with pytest.raises(UserError, match="the tokenizer is not that of m"):
        engine(server, tokenizer).likelihoods([Likelihood(IDS, SCORED)], Silent(), "x")


def test_likelihoods_need_a_tokenizer(server):
    with pytest.raises(UserError, match="need the model's tokenizer"):
        engine(server).likelihoods([Likelihood(IDS, SCORED)], Silent(), "x")
    assert server.asked == []


def test_a_tokenizer_is_loaded_where_it_is_named(server, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "t")
    config = openai.Config(url=server.url, tokenizer=str(tmp_path / "t"), **QUICK)
    with openai.open(config, "m", Silent()) as opened:
        assert opened.tokenizer.decode([5]) == tokenizer.decode([5]) and opened.positions is None
    config = openai.Config(url=server.url, tokenizer=str(tmp_path / "none"), **QUICK)
    with pytest.raises(UserError, match="no tokenizer in"), openai.open(config, "m", Silent()):
        pass
