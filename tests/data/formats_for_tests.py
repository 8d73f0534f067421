"""Rows of each format with the example that they must become, written by hand."""

from tunekit.core.types import Example, Message

U, A = Message("user", "hi"), Message("assistant", "yo")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "dict"}}}


def m(role, content="", **more):
    return {"role": role, "content": content, **more}


def c(*pairs):
    return {"conversations": [{"from": name, "value": value} for name, value in pairs]}


def chat(*turns, **more):
    return {"messages": list(turns), **more}


HI = chat(m("user", "hi"), m("assistant", "yo"))
ASKED = m(
    "assistant", None, tool_calls=[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
)
TREE = {
    "text": "q",
    "role": "prompter",
    "replies": [
        {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
        {"text": "gone", "role": "assistant", "rank": -1, "deleted": True, "replies": []},
        {
            "text": "best",
            "role": "assistant",
            "rank": 0,
            "replies": [
                {"text": "more?", "role": "prompter", "replies": [{"text": "a1", "role": "assistant", "replies": []}]},
                {"text": "other?", "role": "prompter", "replies": []},
            ],
        },
        {"text": "unranked", "role": "assistant", "replies": []},
    ],
}

# name -> (format, row, columns, example by hand)
GOOD = {
    "chat": ("chat", HI, {}, Example((U, A))),
    "chat with a system turn": (
        "chat",
        chat(m("developer", "be"), m("user", "hi"), m("assistant", "yo")),
        {},
        Example((Message("system", "be"), U, A)),
    ),
    "chat with a system column": ("chat", {"system": "be", **HI}, {}, Example((Message("system", "be"), U, A))),
    "chat text is untouched": (
        "chat",
        chat(m("user", " {{name}} \n"), m("assistant", "</s>\u00a0 <|im_end|> ")),
        {},
        Example((Message("user", " {{name}} \n"), Message("assistant", "</s>\u00a0 <|im_end|> "))),
    ),
    "chat with parts": (
        "chat",
        chat(
            m("user", [{"type": "text", "text": "h"}, {"type": "input_text", "value": "i"}]),
            m("assistant", [{"type": "reasoning", "value": "hm"}, {"type": "output_text", "text": "yo"}]),
        ),
        {},
        Example((U, Message("assistant", "yo", reasoning="hm"))),
    ),
    "chat with a call in a part": (
        "chat",
        chat(
            m("user", "hi"),
            m("assistant", [{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]),
            m("tool", [{"type": "text", "value": "1"}]),
            m("assistant", "yo"),
        ),
        {},
        Example((U, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "1"), A)),
    ),
    "chat with tool calls": (
        "chat",
        chat(m("user", "hi"), ASKED, m("tool", "", tool_call_id="c1", name="f"), m("assistant", "yo"), tools=[TOOL]),
        {},
        Example(
            (
                U,
                Message("assistant", "", tool_calls=({"id": "c1", **CALL},)),
                Message("tool", "", name="f", tool_call_id="c1"),
                A,
            ),
            (TOOL,),
        ),
    ),
    "chat that ends with a call": (
        "chat",
        chat(m("user", "hi"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}),
        {},
        Example((U, Message("assistant", "", tool_calls=(CALL,)))),
    ),
    "chat with a legacy call": (
        "chat",
        chat(
            m("user", "hi"),
            m("assistant", None, function_call={"name": "f", "arguments": '{"x": 1}'}),
            m("function", "1"),
            m("assistant", "yo"),
        ),
        {},
        Example((U, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "1"), A)),
    ),
    "chat with bare tools in a text": (
        "chat",
        {**HI, "tools": '[{"name": "f", "parameters": {"type": "dict"}}]'},
        {},
        Example((U, A), (TOOL,)),
    ),
    "chat with no tools": ("chat", {**HI, "tools": "[]"}, {}, Example((U, A))),
    "chat with nulls of a table": (
        "chat",
        chat(
            m("user", "hi", tool_calls=None, name=None, tool_call_id=None, train=None),
            m("assistant", "yo", tool_calls=None, name=None, tool_call_id=None, train=None),
            tools=None,
        ),
        {},
        Example((U, A)),
    ),
    "chat with trained turns named": (
        "chat",
        chat(m("user", "hi"), m("assistant", "yo", weight=0), m("user", "hi"), m("assistant", "yo", train=True)),
        {},
        Example((U, Message("assistant", "yo", train=False), U, Message("assistant", "yo", train=True))),
    ),
    "chat with reasoning": (
        "chat",
        chat(m("user", "hi"), m("assistant", "yo", reasoning_content="hm")),
        {},
        Example((U, Message("assistant", "yo", reasoning="hm"))),
    ),
    "chat in another column": ("chat", {"talk": HI["messages"]}, {"messages": "talk"}, Example((U, A))),
    "sharegpt": ("sharegpt", c(("human", "hi"), ("gpt", "yo")), {}, Example((U, A))),
    "sharegpt's other roles": (
        "sharegpt",
        c(("system", "be"), ("user", "hi"), ("model", "yo"), ("human", "hi"), ("bot", "yo")),
        {},
        Example((Message("system", "be"), U, A, U, A)),
    ),
    "sharegpt with a system column": (
        "sharegpt",
        {**c(("human", "hi"), ("assistant", "yo")), "system": "be"},
        {},
        Example((Message("system", "be"), U, A)),
    ),
    "sharegpt with an empty system column": (
        "sharegpt",
        {**c(("human", "hi"), ("gpt", "yo")), "system": ""},
        {},
        Example((U, A)),
    ),
    "sharegpt with calls": (
        "sharegpt",
        {
            **c(
                ("human", "hi"),
                ("function_call", '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "{}"}]'),
                ("observation", "1"),
                ("function_response", "2"),
                ("gpt", "yo"),
            ),
            "tools": '[{"name": "f", "parameters": {"type": "dict"}}]',
        },
        {},
        Example(
            (
                U,
                Message(
                    "assistant", "", tool_calls=(CALL, {"type": "function", "function": {"name": "g", "arguments": {}}})
                ),
                Message("tool", "1"),
                Message("tool", "2"),
                A,
            ),
            (TOOL,),
        ),
    ),
    "prompt and completion": ("prompt_completion", {"prompt": "hi", "completion": "yo"}, {}, Example((U, A))),
    "prompt and response": ("prompt_completion", {"prompt": "hi", "response": "yo"}, {}, Example((U, A))),
    "prompt and completion as messages": (
        "prompt_completion",
        {
            "prompt": [m("user", "hi"), m("assistant", "yo"), m("user", "hi")],
            "completion": [m("assistant", "yo")],
        },
        {},
        Example((U, Message("assistant", "yo", train=False), U, A)),
    ),
    "alpaca": ("alpaca", {"instruction": "hi", "input": "", "output": "yo"}, {}, Example((U, A))),
    "alpaca with everything": (
        "alpaca",
        {"instruction": "add", "input": "1 2", "output": "3", "system": "be", "history": [["hi", "yo"]]},
        {},
        Example((Message("system", "be"), U, A, Message("user", "add\n\n1 2"), Message("assistant", "3"))),
    ),
    "alpaca from a nested row": (
        "alpaca",
        {"instruction": "hi", "instances": [{"input": "", "output": "yo"}]},
        {"input": "instances.0.input", "output": "instances.0.output"},
        Example((U, A)),
    ),
    "question and answer": ("question_answer", {"question": "hi", "answer": "yo"}, {}, Example((U, A))),
    "question about a context": (
        "question_answer",
        {"context": "so", "question": "hi", "answer": "yo"},
        {},
        Example((Message("user", "so\n\nhi"), A)),
    ),
    "one of several answers": (
        "question_answer",
        {"question": "hi", "answer": ["yo", "hey"]},
        {"answer": "answer.0"},
        Example((U, A)),
    ),
    "text": ("text", {"text": " a\n"}, {}, Example(text=" a\n")),
    "text as content": ("text", {"content": "a"}, {}, Example(text="a")),
    "text in paragraphs": ("text", {"lines": ["a", "b"]}, {"text": "lines"}, Example(text="a\nb")),
    "turns of pairs": (
        "turns",
        {"conversation": [{"system": "be", "input": "hi", "output": "yo"}, {"input": "hi", "output": "yo"}]},
        {},
        Example((Message("system", "be"), U, A, U, A)),
    ),
    "turns by speakers": (
        "turns",
        {"turns": [{"speaker": "USER", "utterance": "hi"}, {"speaker": "SYSTEM", "utterance": "yo"}]},
        {},
        Example((U, A)),
    ),
    "turns by usr and sys": ("turns", chat(m("usr", "hi"), m("sys", "yo")), {}, Example((U, A))),
    "tree": (
        "tree",
        {"prompt": TREE},
        {},
        Example(
            (Message("user", "q"), Message("assistant", "best"), Message("user", "more?"), Message("assistant", "a1"))
        ),
    ),
}
