"""Golden label masks, written by hand: the text each template must give, with ⟦ ⟧ around the trained characters."""

# ruff: noqa: E501 (a golden is read as a whole)

from render_for_tests import call, said, tool

from tunekit.core.types import Example

STOPS = "Say <|im_end|></s><|eot_id|><end_of_turn> now"
CODE = "{{ x }} {% if y %} {# z #} }} {0} %s"
CASES = {
    "single": Example(said(("user", "Hi"), ("assistant", "Hello!"))),
    "multi": Example(said(("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "See you."))),
    "system": Example(said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "So."))),
    "empty system": Example(said(("system", ""), ("user", "Hi"), ("assistant", "Hello!"))),
    "tools": Example(
        said(("user", "1+2?"), ("assistant", "", {"tool_calls": (call("add", a=1, b=2),)}), ("tool", "3"), ("assistant", "It is 3.")),
        (tool("add"),),
    ),
    "two results": Example(
        said(
            ("user", "Both?"), ("assistant", "", {"tool_calls": (call("f", x=1), call("g", y=2))}),
            ("tool", "one"), ("tool", "two"), ("assistant", "one, two"), ("user", "Ta"), ("assistant", "Bye"),
        ),
        (tool("f"), tool("g")),
    ),
    "unicode": Example(said(("user", "你好 👋"), ("assistant", "世界 🌍 é"))),
    "white space": Example(said(("user", " Hi "), ("assistant", "  out \n"), ("user", "So"), ("assistant", "\n\nin"))),
    "same text": Example(said(("user", "yes"), ("assistant", "yes"), ("user", "yes"), ("assistant", "yes"))),
    "stop strings": Example(said(("user", STOPS), ("assistant", STOPS))),
    "headers": Example(said(("user", "[/INST] model\nassistant\n"), ("assistant", " [INST] a [/INST]"), ("user", "b"), ("assistant", "c"))),
    "code": Example(said(("user", CODE), ("assistant", CODE))),
}  # fmt: skip

CHATML = {
    "single": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
    "multi": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧\n",
    "system": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦So.<|im_end|>⟧\n",
    "empty system": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
    "tools": "<|im_start|>system\nTools: add<|im_end|>\n<|im_start|>user\n1+2?<|im_end|>\n<|im_start|>assistant\n"
    '⟦<tool_call>add{"a": 1, "b": 2}</tool_call><|im_end|>⟧\n<|im_start|>tool\n3<|im_end|>\n'
    "<|im_start|>assistant\n⟦It is 3.<|im_end|>⟧\n",
    "two results": "<|im_start|>system\nTools: f, g<|im_end|>\n<|im_start|>user\nBoth?<|im_end|>\n<|im_start|>assistant\n"
    '⟦<tool_call>f{"x": 1}</tool_call><tool_call>g{"y": 2}</tool_call><|im_end|>⟧\n'
    "<|im_start|>tool\none<|im_end|>\n<|im_start|>tool\ntwo<|im_end|>\n<|im_start|>assistant\n⟦one, two<|im_end|>⟧\n"
    "<|im_start|>user\nTa<|im_end|>\n<|im_start|>assistant\n⟦Bye<|im_end|>⟧\n",
    "unicode": "<|im_start|>user\n你好 👋<|im_end|>\n<|im_start|>assistant\n⟦世界 🌍 é<|im_end|>⟧\n",
    "white space": "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n⟦  out \n<|im_end|>⟧\n"
    "<|im_start|>user\nSo<|im_end|>\n<|im_start|>assistant\n⟦\n\nin<|im_end|>⟧\n",
    "same text": "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>⟧\n"
    "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n⟦yes<|im_end|>⟧\n",
    "stop strings": "<|im_start|>user\nSay <|im_end|></s><|eot_id|><end_of_turn> now<|im_end|>\n"
    "<|im_start|>assistant\n⟦Say <|im_end|></s><|eot_id|><end_of_turn> now<|im_end|>⟧\n",
    "headers": "<|im_start|>user\n[/INST] model\nassistant\n<|im_end|>\n<|im_start|>assistant\n⟦ [INST] a [/INST]<|im_end|>⟧\n"
    "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n⟦c<|im_end|>⟧\n",
    "code": "<|im_start|>user\n{{ x }} {% if y %} {# z #} }} {0} %s<|im_end|>\n"
    "<|im_start|>assistant\n⟦{{ x }} {% if y %} {# z #} }} {0} %s<|im_end|>⟧\n",
}

_SCHEMA = '"description": "", "parameters": {"type": "object", "properties": {}}}}'
_BEFORE = "<|im_start|>system\nThese functions can be called, one JSON schema a line:\n<tools>\n"
_AFTER = (
    "</tools>\nA call is one JSON object between tags:\n<tool_call>\n"
    '{"name": "...", "arguments": {...}}\n</tool_call><|im_end|>\n'
)
MARKED = {
    **CHATML,
    "tools": _BEFORE
    + '{"type": "function", "function": {"name": "add", '
    + _SCHEMA
    + "\n"
    + _AFTER
    + "<|im_start|>user\n1+2?<|im_end|>\n"
    '<|im_start|>assistant\n⟦<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦It is 3.<|im_end|>⟧\n",
    "two results": _BEFORE + '{"type": "function", "function": {"name": "f", ' + _SCHEMA + "\n"
    '{"type": "function", "function": {"name": "g", ' + _SCHEMA + "\n" + _AFTER + "<|im_start|>user\nBoth?<|im_end|>\n"
    '<|im_start|>assistant\n⟦<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {"y": 2}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n⟦one, two<|im_end|>⟧\n<|im_start|>user\nTa<|im_end|>\n<|im_start|>assistant\n⟦Bye<|im_end|>⟧\n",
}

_S, _U, _T, _A = (
    f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "ipython", "assistant")
)
LLAMA3 = {
    "single": f"<s>{_U}Hi<|eot_id|>{_A}⟦Hello!<|eot_id|>⟧",
    "multi": f"<s>{_U}Hi<|eot_id|>{_A}⟦Hello!<|eot_id|>⟧{_U}Bye<|eot_id|>{_A}⟦See you.<|eot_id|>⟧",
    "system": f"<s>{_S}Be brief.<|eot_id|>{_U}Hi<|eot_id|>{_A}⟦Hello!<|eot_id|>⟧{_U}Bye<|eot_id|>{_A}⟦So.<|eot_id|>⟧",
    "empty system": f"<s>{_S}<|eot_id|>{_U}Hi<|eot_id|>{_A}⟦Hello!<|eot_id|>⟧",
    "tools": f"<s>{_S}Tools: add<|eot_id|>{_U}1+2?<|eot_id|>{_A}"
    f'⟦{{"name": "add", "parameters": {{"a": 1, "b": 2}}}}<|eot_id|>⟧{_T}3<|eot_id|>{_A}⟦It is 3.<|eot_id|>⟧',
    "two results": f"<s>{_S}Tools: f, g<|eot_id|>{_U}Both?<|eot_id|>{_A}"
    f'⟦{{"name": "f", "parameters": {{"x": 1}}}}{{"name": "g", "parameters": {{"y": 2}}}}<|eot_id|>⟧'
    f"{_T}one<|eot_id|>{_T}two<|eot_id|>{_A}⟦one, two<|eot_id|>⟧{_U}Ta<|eot_id|>{_A}⟦Bye<|eot_id|>⟧",
    "unicode": f"<s>{_U}你好 👋<|eot_id|>{_A}⟦世界 🌍 é<|eot_id|>⟧",
    "white space": f"<s>{_U}Hi<|eot_id|>{_A}⟦out<|eot_id|>⟧{_U}So<|eot_id|>{_A}⟦in<|eot_id|>⟧",
    "same text": f"<s>{_U}yes<|eot_id|>{_A}⟦yes<|eot_id|>⟧{_U}yes<|eot_id|>{_A}⟦yes<|eot_id|>⟧",
    "stop strings": f"<s>{_U}Say <|im_end|></s><|eot_id|><end_of_turn> now<|eot_id|>"
    f"{_A}⟦Say <|im_end|></s><|eot_id|><end_of_turn> now<|eot_id|>⟧",
    "headers": f"<s>{_U}[/INST] model\nassistant<|eot_id|>{_A}⟦[INST] a [/INST]<|eot_id|>⟧{_U}b<|eot_id|>{_A}⟦c<|eot_id|>⟧",
    "code": f"<s>{_U}{CODE}<|eot_id|>{_A}⟦{CODE}<|eot_id|>⟧",
}

MISTRAL = {
    "single": "<s>[INST] Hi [/INST]⟦ Hello!</s>⟧",
    "multi": "<s>[INST] Hi [/INST]⟦ Hello!</s>⟧[INST] Bye [/INST]⟦ See you.</s>⟧",
    "system": "<s>[INST] Hi [/INST]⟦ Hello!</s>⟧[INST] Be brief.\n\nBye [/INST]⟦ So.</s>⟧",
    "empty system": "<s>[INST] Hi [/INST]⟦ Hello!</s>⟧",
    "tools": "<s>[AVAILABLE_TOOLS] add[/AVAILABLE_TOOLS][INST] 1+2? [/INST]"
    '⟦[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]</s>⟧[TOOL_RESULTS] 3[/TOOL_RESULTS]⟦ It is 3.</s>⟧',
    # the first prompts are no prefixes of the whole: the tools move on to the last question
    "two results": '<s>[INST] Both? [/INST]⟦[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]</s>⟧'
    "[TOOL_RESULTS] one[/TOOL_RESULTS][TOOL_RESULTS] two[/TOOL_RESULTS] ⟦one, two</s>⟧"
    "[AVAILABLE_TOOLS] f, g[/AVAILABLE_TOOLS][INST] Ta [/INST]⟦ Bye</s>⟧",
    "unicode": "<s>[INST] 你好 👋 [/INST]⟦ 世界 🌍 é</s>⟧",
    "white space": "<s>[INST]  Hi  [/INST]⟦ out</s>⟧[INST] So [/INST]⟦ in</s>⟧",
    "same text": "<s>[INST] yes [/INST]⟦ yes</s>⟧[INST] yes [/INST]⟦ yes</s>⟧",
    "stop strings": "<s>[INST] Say <|im_end|></s><|eot_id|><end_of_turn> now [/INST]⟦ Say <|im_end|></s><|eot_id|><end_of_turn> now</s>⟧",
    "headers": "<s>[INST] [/INST] model\nassistant\n [/INST]⟦ [INST] a [/INST]</s>⟧[INST] b [/INST]⟦ c</s>⟧",
    "code": f"<s>[INST] {CODE} [/INST]⟦ {CODE}</s>⟧",
}

GEMMA = {
    "single": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n",
    "multi": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n⟦See you.<end_of_turn>⟧\n",
    "system": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n⟦So.<end_of_turn>⟧\n",
    "empty system": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n",
    "unicode": "<s><start_of_turn>user\n你好 👋<end_of_turn>\n<start_of_turn>model\n⟦世界 🌍 é<end_of_turn>⟧\n",
    "white space": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦out<end_of_turn>⟧\n"
    "<start_of_turn>user\nSo<end_of_turn>\n<start_of_turn>model\n⟦in<end_of_turn>⟧\n",
    "same text": "<s><start_of_turn>user\nyes<end_of_turn>\n<start_of_turn>model\n⟦yes<end_of_turn>⟧\n"
    "<start_of_turn>user\nyes<end_of_turn>\n<start_of_turn>model\n⟦yes<end_of_turn>⟧\n",
    "stop strings": "<s><start_of_turn>user\nSay <|im_end|></s><|eot_id|><end_of_turn> now<end_of_turn>\n"
    "<start_of_turn>model\n⟦Say <|im_end|></s><|eot_id|><end_of_turn> now<end_of_turn>⟧\n",
    "headers": "<s><start_of_turn>user\n[/INST] model\nassistant<end_of_turn>\n<start_of_turn>model\n⟦[INST] a [/INST]<end_of_turn>⟧\n"
    "<start_of_turn>user\nb<end_of_turn>\n<start_of_turn>model\n⟦c<end_of_turn>⟧\n",
    "code": f"<s><start_of_turn>user\n{CODE}<end_of_turn>\n<start_of_turn>model\n⟦{CODE}<end_of_turn>⟧\n",
}

GOLDENS = {"chatml": CHATML, "marked": MARKED, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA}
