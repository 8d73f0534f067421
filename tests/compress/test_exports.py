"""What stands beside exported weights: Ollama's template says what the model's own says, and what it cannot say is
refused. Its text is read here by a small interpreter of the part of Go's template language that is written."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tunekit.compress.exports import gguf, ollama, safetensors, vllm
from tunekit.compress.source import Source
from tunekit.core.errors import UserError
from tunekit.core.registry import BACKENDS, EXPORTS
from tunekit.model.names import TINY

CHATML = """\
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
QWEN = """\
{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{%- endif -%}
""" + CHATML  # a rule of its own where none is given
GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for m in messages -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
LLAMA_2 = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' -%}{{ ' ' + m.content + ' </s>' }}
{%- else -%}{{ raise_exception('no such role') }}{%- endif -%}
{%- endfor -%}"""
LLAMA_2_RULED = """\
{%- if messages[0].role == 'system' -%}
{%- set rule = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set rule = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{%- if m.role == 'user' -%}{{ bos_token + '[INST] ' + (rule if loop.first else '') + m.content + ' [/INST]' }}
{%- else -%}{{ ' ' + m.content + ' </s>' }}{%- endif -%}
{%- endfor -%}"""
LLAMA_3 = """\
{%- for m in messages -%}
{%- set turn = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -%}
{{ (bos_token if loop.first else '') + turn }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""
MISTRAL = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' -%}{{ m.content + '</s>' }}
{%- else -%}{{ raise_exception('no such role') }}{%- endif -%}
{%- endfor -%}"""
LAST_ONLY = CHATML.replace("m.content +", "(m.content if loop.last else m.content | upper) +")
FORGETFUL = "{%- set m = messages[-1] -%}{{ '[' + m.content + ']' }}"
NUMBERED = "{%- for m in messages -%}{{ loop.index ~ ' ' ~ m.role ~ ': ' ~ m.content ~ '\\n' }}{%- endfor -%}"
ENCLOSED = CHATML.replace("m.content", "'{{' + '{' + m.content + '}}'")
BRACED = CHATML.replace("'<|im_start|>' + m.role", "'{{ .Role }} \"\"\"' + m.role")

SAID = {"user": "Hi {{ you }}, \"one\"", "assistant": "It's <b>me</b>.\n\nYes.", "system": "Be brief.\n- a\n- b"}
TALKS = [
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant") * 3 + ("user",),
    ("system", "user"),
    ("system",) + ("user", "assistant") * 2 + ("user",),
]


def tokenizer(template, bos=None, *, added=True):
    """The embedded one with another template; ``bos`` stands before every text that it reads."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(TINY)
    found.chat_template = template
    if bos is not None:
        found.add_special_tokens({"bos_token": bos})
        if added:
            from tokenizers.processors import TemplateProcessing

            single = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, found.bos_token_id)])
            found.backend_tokenizer.post_processor = single
    return found


def go(text, turns):
    """What Go makes of the actions that are written: range, if, else-less, index, $i, texts in quotes."""
    tokens = re.split(r"\{\{ (.*?) \}\}", text)
    assert not any("{{" in token or token.endswith("{") for token in tokens[:-1:2]), "an action in an action"

    def walk(at, dot, number, live):
        out = ""
        while at < len(tokens):
            if at % 2 == 0:
                out, at = out + (tokens[at] if live else ""), at + 1
                continue
            word, at = tokens[at], at + 1
            if word == "end":
                return out, at
            if word.startswith("range "):
                assert word in ("range .Messages", "range $i, $_ := .Messages"), word
                for position, turn in enumerate(turns):
                    part, after = walk(at, turn, position if "$i" in word else None, live)
                    out += part
                at = after
            elif word.startswith("if "):
                part, at = walk(at, dot, number, live and truth(word[3:], dot, number))
                out += part
            elif live:
                out += dot["content"] if word == ".Content" else json.loads(word)
        assert number is None and dot is None, "an end is missing"
        return out, at

    def truth(word, dot, number):
        if word == "$i":
            return bool(number)
        if found := re.fullmatch(r'eq \.Role "(\w+)"', word):
            return dot["role"] == found[1]
        assert word == 'ne (index .Messages 0).Role "system"', word
        return turns[0]["role"] != "system"

    return walk(0, None, None, True)[0]


def asked(roles):
    return [{"role": role, "content": SAID[role]} for role in roles]


WRITTEN = {
    "chatml": (CHATML, None, True),
    "qwen": (QWEN, None, True),
    "gemma": (GEMMA, "<bos>", False),
    "llama 2": (LLAMA_2, "<s>", False),
    "llama 3": (LLAMA_3, "<|begin_of_text|>", True),
    "mistral": (MISTRAL, "<s>", False),
    "braces and quotes": (BRACED, None, True),
    "braces around": (ENCLOSED, None, True),
    "embedded": (None, None, True),
}


@pytest.mark.parametrize(
    ("case", "added"),
    [(case, True) for case in WRITTEN] + [(case, False) for case, (_, bos, _) in WRITTEN.items() if bos],
)
def test_ollamas_template_says_what_the_models_own_says(case, added):
    """With what llama.cpp puts before every text, where the tokenizer does so: once, not twice and not never."""
    template, bos, ruled = WRITTEN[case]
    own = tokenizer(template or (TINY / "chat_template.jinja").read_text(encoding="utf-8"), bos, added=added)
    written = ollama.template(own)
    for roles in TALKS:
        if "system" in roles and not ruled:
            continue
        expected = own.apply_chat_template(asked(roles), tokenize=False, add_generation_prompt=True)
        front = bos if bos and added else ""
        assert front + go(written, asked(roles)) == expected, roles


def test_by_hand():
    """The whole text for ChatML; for Llama 2, whose turns each begin with BOS; and for a rule where none is given."""
    turn = '{{{{ if eq .Role "{0}" }}}}<|im_start|>{0}\n{{{{ .Content }}}}<|im_end|>\n{{{{ end }}}}'
    turns = "".join(turn.format(role) for role in ("user", "assistant", "system"))
    chatml = "{{ range .Messages }}" + turns + "{{ end }}<|im_start|>assistant\n"
    assert ollama.template(tokenizer(CHATML)) == chatml
    kind = '{{ if ne (index .Messages 0).Role "system" }}<|im_start|>system\nYou are kind.<|im_end|>\n{{ end }}'
    assert ollama.template(tokenizer(QWEN)) == kind + chatml
    assert ollama.template(tokenizer(LLAMA_2, "<s>")) == (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ if $i }}<s>{{ end }}[INST] {{ .Content }} [/INST]'
        '{{ end }}{{ if eq .Role "assistant" }} {{ .Content }} </s>{{ end }}{{ end }}'
    )
    assert ollama.template(tokenizer(GEMMA, "<bos>", added=False)).startswith("<bos>{{ range .Messages }}")


REFUSED = {
    "a rule inside of the first turn": (LLAMA_2_RULED, "<s>"),
    "only the last turn as it is": (LAST_ONLY, None),
    "only the last turn at all": (FORGETFUL, None),
    "turns that are numbered": (NUMBERED, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ollamas_language_cannot_say_is_refused(case):
    with pytest.raises(UserError, match="writes a turn in another way") as raised:
        ollama.template(tokenizer(*REFUSED[case]))
    assert "export gguf" in raised.value.fix


def test_no_template():
    with pytest.raises(UserError, match="has no chat template"):
        ollama.template(tokenizer(None))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "small model"
    place.mkdir()
    (place / "model-q8_0.gguf").touch()
    return place


def source_of(tmp_path, stops, own=None):
    place = tmp_path / "source"
    place.mkdir()
    if stops is not None:
        (place / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    found = Source("source", place, None, {})
    found.__dict__["tokenizer"] = own or tokenizer(CHATML)
    return found


@pytest.mark.parametrize(
    ("stops", "told"),
    [(2, ["<|im_end|>"]), ([0, 2], ["<|endoftext|>", "<|im_end|>"]), (None, ["<|im_end|>"])],
)
def test_the_modelfile(stops, told, folder, tmp_path):
    source = source_of(tmp_path, stops)
    ollama.finish(source, folder)
    lines = (folder / "Modelfile").read_text(encoding="utf-8")
    assert lines.startswith('FROM ./model-q8_0.gguf\nTEMPLATE """{{ range .Messages }}')
    assert lines.count('"""') == 2
    assert re.findall(r'^PARAMETER stop "(.*)"$', lines, re.MULTILINE) == told


def test_a_stop_that_is_no_special_token_is_written_as_text(folder, tmp_path):
    """Byte-level vocabularies spell a space as another letter."""
    own = tokenizer(CHATML)
    (token,) = own(" the", add_special_tokens=False)["input_ids"][:1]
    assert own.convert_ids_to_tokens(token) != own.decode([token]), "the fault that is guarded against"
    assert ollama.stops(source_of(tmp_path, [token], own)) == [own.decode([token])]


def test_a_stop_that_a_modelfile_cannot_say(tmp_path):
    own = tokenizer(CHATML)
    own.add_special_tokens({"additional_special_tokens": ['<"end">']})
    with pytest.raises(UserError, match="which a Modelfile cannot say"):
        ollama.stops(source_of(tmp_path, [own.convert_tokens_to_ids('<"end">')], own))


@pytest.mark.parametrize("stops", [2, [2, 5], 0])
def test_vllm_takes_a_folder_that_can_end_a_turn(stops, tmp_path):
    source = source_of(tmp_path, stops)
    vllm.finish(source, source.folder)


@pytest.mark.parametrize("stops", [None, [], "no file"])
def test_vllm_refuses_a_folder_that_cannot(stops, tmp_path):
    source = source_of(tmp_path, None)
    if stops != "no file":
        (source.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    with pytest.raises(UserError, match="nothing says at which token an answer ends") as raised:
        vllm.finish(source, source.folder)
    assert "generation_config.json" in raised.value.fix


def test_the_commands_hold_where_a_name_has_spaces(folder):
    for export, program in ((ollama, "ollama"), (vllm, "vllm"), (gguf, "llama-server")):
        words = shlex.split(export.use(folder))
        assert words[0] == program and any(str(folder) in word for word in words), words
    assert repr(str(folder)) in safetensors.use(folder)


def test_every_type_that_can_be_exported_is_a_kind_of_a_backend():
    known = {kind for name in BACKENDS.names for kind in BACKENDS.load(name).KINDS}
    assert set(EXPORTS.names) == {"safetensors", "gguf", "vllm", "ollama"}
    for name in EXPORTS.names:
        assert set(EXPORTS.load(name).KINDS) <= known, name
