"""The label mask against goldens written by hand, and against what each template must train in random conversations."""

import random
from dataclasses import replace

import pytest
from goldens_for_tests import CASES, GOLDENS
from render_for_tests import byte_level, call, metaspace, parse, said, template, tool

from tunekit.core.errors import UserError
from tunekit.core.types import Example, RowError
from tunekit.data.encode import RowEncoder
from tunekit.data.locate import Locator
from tunekit.data.render import Renderer, message_dict, named_template

PAIRS = [(name, case) for name, goldens in GOLDENS.items() for case in goldens]


def by_hand(encoded, tokenizer, rendered, spans):
    """The mask from the definition, one character at a time (rows without control-token strings of their own)."""
    marked = {at for begin, end in spans for at in range(begin, end)}
    places = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    assert tuple(places["input_ids"]) == encoded.input_ids
    return tuple(any(at in marked for at in range(*place)) for place in places["offset_mapping"])


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_golden(name, case):
    tokenizer = byte_level()
    text, spans = parse(GOLDENS[name][case])
    rendered = Renderer(tokenizer, template(name)).render(CASES[case])
    assert rendered.text == text
    assert [text[b:e] for b, e in rendered.trained] == [text[b:e] for b, e in spans]
    assert list(rendered.trained) == spans
    assert all(turn.stop and turn.stop[1] == turn.end for turn in rendered.turns)


@pytest.mark.parametrize("make", [byte_level, metaspace, lambda: metaspace("always")])
@pytest.mark.parametrize(("name", "case"), [pair for pair in PAIRS if pair[1] != "stop strings"])
def test_golden_tokens(make, name, case):
    tokenizer = make()
    text, spans = parse(GOLDENS[name][case])
    rendered = Renderer(tokenizer, template(name)).render(CASES[case])
    encoded = RowEncoder(tokenizer).encode([rendered])[0]
    assert encoded.trained == by_hand(encoded, tokenizer, rendered, spans)
    assert len(encoded.turn_ends) == len(spans)
    assert all(encoded.trained[at] for at in encoded.turn_ends)
    ends = [tokenizer.convert_ids_to_tokens(encoded.input_ids[at]) for at in encoded.turn_ends]
    assert all(text[:end].endswith(token) for (_, end), token in zip(spans, ends, strict=True))
    assert not any(encoded.trained[: encoded.prompt_tokens][-1:]) and encoded.trained[encoded.prompt_tokens]


@pytest.mark.parametrize("name", ["tools", "two results"])
def test_a_template_without_tools_says_so(name):
    with pytest.raises(RowError, match="role tool is not supported"):
        Renderer(byte_level(), template("gemma")).render(CASES[name])


@pytest.mark.parametrize("name", list(GOLDENS))
def test_loss_on_and_overrides(name):
    text, (first, second) = parse(GOLDENS[name]["multi"])
    hi, hello, bye, see = CASES["multi"].messages
    tokenizer, source = byte_level(), template(name)

    def trained(loss_on, *messages):
        return list(Renderer(tokenizer, source, loss_on).render(Example(messages)).trained)

    no, yes = {"train": False}, {"train": True}
    assert trained("assistant", hi, replace(hello, **no), bye, see) == [second]
    assert trained("assistant", hi, hello, bye, replace(see, **no)) == [first]
    assert trained("last_turn", hi, hello, bye, see) == [second]
    assert trained("last_turn", hi, replace(hello, **yes), bye, see) == [first, second]
    assert trained("last_turn", hi, hello, bye, replace(see, **no)) == []
    assert trained("all", hi, hello, bye, see) == [(0, len(text))]
    left = trained("all", hi, replace(hello, **no), replace(bye, **no), see)
    at = text.index("Bye")
    assert left == [(0, first[0]), (first[1], at), (at + 3, len(text))]
    with pytest.raises(RowError, match="user"):
        trained("assistant", replace(hi, **yes), hello)


@pytest.mark.parametrize("name", list(GOLDENS))
def test_prompt_is_a_prefix(name):
    renderer = Renderer(byte_level(), template(name))
    for case in ("single", "multi", "unicode", "white space", "same text", "stop strings", "code"):
        prompt, rendered = renderer.prompt(CASES[case]), renderer.render(CASES[case])
        assert rendered.text.startswith(prompt)
        assert len(prompt) == rendered.turns[-1].start
    assert renderer.facts().prefix_preserving


FRAGMENTS = [
    "yes", "no ", " ", "\n", "\t", "", "你好", "🙂", "user", "model\n", "assistant\n", "[/INST]", "[INST]", "{{ x }}",
    "{% raw %}", "</s>", "<s>", "<|im_end|>", "<|im_start|>assistant\n", "<end_of_turn>\n", "<|eot_id|>",
    "tkhold0n0z", "tksentinel0q",
]  # fmt: skip
EXPECTED = {
    "chatml": lambda c: c + "<|im_end|>",
    "marked": lambda c: c + "<|im_end|>",
    "llama3": lambda c: c.strip() + "<|eot_id|>",
    "mistral": lambda c: " " + c.strip() + "</s>",
    "gemma": lambda c: c.strip() + "<end_of_turn>",
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_trained_text_is_the_assistants_text(name):
    """200 conversations in all; one look and rendering again must agree as well."""
    draw = random.Random(name)
    tokenizer = byte_level()
    renderer, encoder = Renderer(tokenizer, template(name)), RowEncoder(tokenizer)
    for _ in range(40):
        turns = [("system", _content(draw))] if name != "gemma" and draw.random() < 0.3 else []
        for _ in range(draw.randint(1, 4)):
            turns += [("user", _content(draw)), ("assistant", _content(draw))]
        example = Example(said(*turns))
        rendered = renderer.render(example)
        expected = [EXPECTED[name](content) for role, content in turns if role == "assistant"]
        assert [rendered.text[b:e] for b, e in rendered.trained] == expected
        encoded = encoder.encode([rendered])[0]
        assert tokenizer.decode(encoded.input_ids) == rendered.text
        assert len(encoded.turn_ends) == len(expected)
        assert all(encoded.trained[at] for at in encoded.turn_ends)
        if not rendered.literals:
            assert encoded.trained == by_hand(encoded, tokenizer, rendered, rendered.trained)
            assert _again(renderer, example) == list(rendered.turns)


def _content(draw):
    return "".join(draw.choice(FRAGMENTS) for _ in range(draw.randint(0, 5)))


def _again(renderer, example):
    source = renderer.template

    def render(messages, generation_prompt):
        return renderer._draw(source, messages, None, generation_prompt)[0]

    messages = [message_dict(message) for message in example.messages]
    return Locator(render, renderer._added, renderer._bos, renderer.facts()).turns(render(messages, False), messages)


def test_a_tool_result_inside_the_turn_is_not_trained():
    """gpt-oss style: the call ends with a token of its own, the result with the one that ends answers."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{{ m.tool_calls[0].function.name + '<|eot_id|>' if m.tool_calls else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = ("user", "Sum?"), ("assistant", "", {"tool_calls": (call("add"),)}), ("tool", "3"), ("assistant", "3")
    rendered = Renderer(byte_level(), source).render(Example(said(*turns), (tool("add"),)))
    assert [rendered.text[b:e] for b, e in rendered.trained] == ["add<|eot_id|>", "3<|im_end|>"]


def test_a_result_that_cannot_be_told_from_its_call_is_refused():
    """The template writes the result into the calling turn, and nothing but the turn's end follows."""
    source = (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{{ 'add' + (loop.nextitem.content if loop.nextitem else '') if m.tool_calls else '' }}"
        "{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = ("user", "Sum?"), ("assistant", "", {"tool_calls": (call("add"),)}), ("tool", "3"), ("assistant", "3")
    with pytest.raises(RowError, match="tell where its tool calls end"):
        Renderer(byte_level(), source).render(Example(said(*turns), (tool("add"),)))


def test_white_space_before_the_end_token():
    """Llama 2 style: a space stands between the answer and its end, and is trained with it."""
    source = (
        "{% for m in messages %}{{ '<s>[INST] ' + m.content + ' [/INST]' if m.role == 'user' else"
        " ' ' + m.content + ' </s>' }}{% endfor %}"
    )
    renderer = Renderer(byte_level(), source)
    for case in ("multi", "code", "headers"):
        rendered = renderer.render(CASES[case])
        answers = [f" {m.content} </s>" for m in CASES[case].messages if m.role == "assistant"]
        assert [rendered.text[b:e] for b, e in rendered.trained] == answers
    example = Example(CASES["multi"].messages[:3])  # the last turn is the user's
    assert [renderer.render(example).text[b:e] for b, e in renderer.render(example).trained] == [" Hello! </s>"]
    assert _again(renderer, CASES["multi"]) == list(renderer.render(CASES["multi"]).turns)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_a_well_behaved_row_is_rendered_once(name, case):
    renderer = Renderer(byte_level(), template(name))
    renderer.facts()
    drawn = []
    draw = renderer._draw
    renderer._draw = lambda *call_: drawn.append(1) or draw(*call_)
    renderer.render(CASES[case])
    # the others need a look from several sides: "[/INST]" in the data, and tools that move about
    several = name == "mistral" and case in ("headers", "tools", "two results")
    assert (len(drawn) > 1) == several


def test_what_the_template_leaves_out_is_refused():
    renderer = Renderer(byte_level(), template("gemma"))
    with pytest.raises(RowError, match="does not write its reasoning"):
        renderer.render(Example(said(("user", "a"), ("assistant", "b", {"reasoning": "because"}))))
    with pytest.raises(RowError, match="tool calls"):
        renderer.render(Example(said(("user", "a"), ("assistant", "b", {"tool_calls": (call("f"),)}))))
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RowError, match="writes its content 0 times"):
        Renderer(byte_level(), silent).render(CASES["single"])
    twice = "{% for m in messages %}{{ m.content + '|' + m.content + '</s>' }}{% endfor %}"
    with pytest.raises(RowError, match="2 times"):
        Renderer(byte_level(), twice).render(CASES["single"])


def test_a_template_without_end_tokens_has_no_turn_ends():
    source = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = byte_level()
    rendered = Renderer(tokenizer, source).render(CASES["multi"])
    assert [rendered.text[b:e] for b, e in rendered.trained] == ["Hello!", "See you."]
    assert [turn.stop for turn in rendered.turns] == [None, None]
    assert RowEncoder(tokenizer).encode([rendered])[0].turn_ends == ()


def test_an_end_token_outside_the_marks_is_reported_untrained():
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    tokenizer = byte_level()
    encoded = RowEncoder(tokenizer).encode([Renderer(tokenizer, source).render(CASES["single"])])[0]
    assert len(encoded.turn_ends) == 1 and not encoded.trained[encoded.turn_ends[0]]


def test_marks_in_the_wrong_place_are_refused():
    source = (
        "{% for m in messages %}{% generation %}{{ '<|im_start|>' + m.role }}{% endgeneration %}"
        "{{ m.content + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(UserError, match="do not hold the assistant's answers"):
        Renderer(byte_level(), source).render(CASES["single"])


def test_stripped_reasoning_of_earlier_turns():
    """Reasoning shown for the last turn only, and a generation prompt that opens it: no prompt is a prefix."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    turns = (
        ("user", "a"),
        ("assistant", "b", {"reasoning": "hm"}),
        ("user", "c"),
        ("assistant", "d", {"reasoning": "ah"}),
    )
    rendered = Renderer(byte_level(), source).render(Example(said(*turns)))
    assert [rendered.text[b:e] for b, e in rendered.trained] == ["b<|im_end|>", "ah\n</think>\nd<|im_end|>"]


def test_templates_by_name():
    assert "generation" in named_template("chatml")
    with pytest.raises(UserError) as error:
        named_template("chatlm")
    assert "did you mean 'chatml'?" in error.value.fix
    with pytest.raises(UserError, match="no chat template file"):
        named_template("nowhere/x.jinja")
    with pytest.raises(UserError, match="not valid Jinja"):
        Renderer(byte_level(), "{% if %}")


def test_a_conversation_needs_a_template():
    renderer = Renderer(byte_level())
    with pytest.raises(UserError) as error:
        renderer.render(CASES["single"])
    assert "model.chat_template: chatml" in error.value.fix
    hashes = {Renderer(byte_level(), template(name)).template_hash for name in GOLDENS}
    assert len({renderer.template_hash, *hashes}) == len(GOLDENS) + 1
