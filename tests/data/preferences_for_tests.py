"""Rows of preference data and of prompts with what they must become, written by hand."""

from tunekit.core.types import Example, Judged, Message, Pair, Question

U, A, B = Message("user", "hi"), Message("assistant", "yo"), Message("assistant", "no")
GOOD_ONE, BAD_ONE = Example((U, A)), Example((U, B))
PAIR = Pair(GOOD_ONE, BAD_ONE)
BE = Message("system", "be")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "dict"}}}


def m(role, content):
    return {"role": role, "content": content}


def s(name, value):
    return {"from": name, "value": value}


TWO = {"chosen": "yo", "rejected": "no"}
WHOLE = {"chosen": [m("user", "hi"), m("assistant", "yo")], "rejected": [m("user", "hi"), m("assistant", "no")]}
HUMAN = {"conversations": [s("human", "hi")], "chosen": s("gpt", "yo"), "rejected": s("gpt", "no")}
THREE = (Example((U, Message("assistant", "a"))), Example((U, Message("assistant", "b"))))
THREE = (*THREE, Example((U, Message("assistant", "c"))))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TALK = '[{"role": "agent", "text": "hey"}, {"role": "user", "text": "hi"}]'
CALL_TEXT = '{"role": "agent", "api": {"f": {"x": 1}}}'
CALLED = f'[{{"role": "user", "text": "hi"}}, {CALL_TEXT}, {{"role": "api", "response": {{"f": 2}}}}]'


def asked(row, *turns, reference=""):
    return ("prompts", row, {}, Question(Example(turns), reference, row))


# name -> (format, row, columns, what it must become, by hand)
BETTER = {
    "pairs of texts": ("pairs", {"prompt": "hi", **TWO}, {}, (PAIR,)),
    "pairs with a system prompt and tools": (
        "pairs",
        {"prompt": "hi", **TWO, "system": "be", "tools": '[{"name": "f", "parameters": {"type": "dict"}}]'},
        {},
        (Pair(Example((BE, U, A), (TOOL,)), Example((BE, U, B), (TOOL,))),),
    ),
    "pairs of messages": (
        "pairs",
        {"prompt": [m("user", "hi")], "chosen": m("assistant", "yo"), "rejected": [m("assistant", "no")]},
        {},
        (PAIR,),
    ),
    "pairs whose answers repeat the prompt": ("pairs", {"prompt": "hi", **WHOLE}, {}, (PAIR,)),
    "pairs whose answers repeat the prompt behind a system turn": (
        "pairs",
        {
            "prompt": "hi",
            "chosen": [m("system", "be"), *WHOLE["chosen"]],
            "rejected": [m("system", "be"), *WHOLE["rejected"]],
        },
        {},
        (Pair(Example((BE, U, A)), Example((BE, U, B))),),
    ),
    "pairs whose answers repeat a prompt but for its system turn": (
        "pairs",
        {"prompt": [m("system", "be"), m("user", "hi")], **WHOLE},
        {},
        (Pair(Example((BE, U, A)), Example((BE, U, B))),),
    ),
    "pairs that are whole conversations": ("pairs", WHOLE, {}, (PAIR,)),
    "pairs with a margin": ("pairs", {"prompt": "hi", **TWO, "margin": 2}, {}, (Pair(GOOD_ONE, BAD_ONE, 2.0),)),
    "pairs with a margin in a csv file": (
        "pairs",
        {"prompt": "hi", **TWO, "margin": "0.5"},
        {},
        (Pair(GOOD_ONE, BAD_ONE, 0.5),),
    ),
    "pairs with scores": (
        "pairs",
        {"prompt": "hi", **TWO, "score_chosen": 8.5, "score_rejected": 6},
        {},
        (Pair(GOOD_ONE, BAD_ONE, 2.5),),
    ),
    "pairs with nulls of a table": (
        "pairs",
        {"prompt": "hi", **TWO, "margin": None, "score_chosen": None, "score_rejected": None, "system": None},
        {},
        (PAIR,),
    ),
    "pairs in other columns": (
        "pairs",
        {"q": "hi", "better": "yo", "worse": "no"},
        {"prompt": "q", "chosen": "better", "rejected": "worse"},
        (PAIR,),
    ),
    "sharegpt pairs": ("sharegpt_pairs", HUMAN, {}, (PAIR,)),
    "sharegpt pairs of texts and of lists": (
        "sharegpt_pairs",
        HUMAN | {"chosen": "yo", "rejected": [s("gpt", "no")], "system": "be", "margin": 1},
        {},
        (Pair(Example((BE, U, A)), Example((BE, U, B)), 1.0),),
    ),
    "dialogue pairs": (
        "dialogue_pairs",
        {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        {},
        (PAIR,),
    ),
    "dialogue pairs with role words inside of turns": (
        "dialogue_pairs",
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: Human: a Assistant: b\nHuman: c\n\nSo\n\nHuman: hi\n\nAssistant:yo ",
            "rejected": "Human:hi\n\nAssistant: Human: a Assistant: b\nHuman: c\n\nSo\n\nHuman: hi\n\nAssistant: no",
        },
        {},
        (
            Pair(
                Example((U, Message("assistant", "Human: a Assistant: b\nHuman: c\n\nSo"), U, A)),
                Example((U, Message("assistant", "Human: a Assistant: b\nHuman: c\n\nSo"), U, B)),
            ),
        ),
    ),
    "ranked by scores": (
        "ranked",
        {"prompt": "hi", "answers": ["a", "b", "c"], "scores": [1, 3.5, 1]},
        {},
        (Pair(THREE[1], THREE[0], 2.5), Pair(THREE[1], THREE[2], 2.5)),
    ),
    "ranked by ranks": (
        "ranked",
        {"prompt": "hi", "answers": ["a", "b", "c"], "ranks": [1, 0, 2]},
        {},
        (Pair(THREE[1], THREE[0]), Pair(THREE[0], THREE[2]), Pair(THREE[1], THREE[2])),
    ),
    "ranked with scores inside": (
        "ranked",
        {"prompt": "hi", "answers": [{"text": "a", "score": 2}, {"text": "b", "score": 1}]},
        {},
        (Pair(THREE[0], THREE[1], 1.0),),
    ),
    "judged messages": (
        "judged",
        {"messages": [m("user", "hi"), m("assistant", "yo")], "label": True},
        {},
        Judged(GOOD_ONE, True),
    ),
    "a judged completion": (
        "judged",
        {"prompt": "hi", "completion": "no", "label": False, "system": "be"},
        {},
        Judged(Example((BE, U, B)), False),
    ),
    "judged lists": (
        "judged",
        {"prompt": [m("user", "hi")], "completion": [m("assistant", "no")], "label": False},
        {},
        Judged(BAD_ONE, False),
    ),
    "judged by a number": ("judged", {"prompt": "hi", "response": "yo", "label": 1.0}, {}, Judged(GOOD_ONE, True)),
    "judged in a csv file": (
        "judged",
        {"prompt": "hi", "response": "yo", "label": "False"},
        {},
        Judged(GOOD_ONE, False),
    ),
    "scored turns that the agent opens": (
        "scored_turns",
        {"context": TALK, "generation": '{"role": "agent", "text": "yo"}', "reward": 1.0},
        {},
        Judged(Example((Message("assistant", "hey"), U, A)), True),
    ),
    "scored turns with calls": (
        "scored_turns",
        {"context": CALLED, "generation": CALL_TEXT, "reward": 0},
        {},
        Judged(
            Example(
                (
                    U,
                    Message("assistant", "", tool_calls=(CALL,)),
                    Message("tool", '{"f": 2}'),
                    Message("assistant", "", tool_calls=(CALL,)),
                )
            ),
            False,
        ),
    ),
    "prompts": asked({"prompt": "hi"}, U),
    "prompts with an answer": asked({"question": "hi", "answer": 42, "level": "easy"}, U, reference="42"),
    "prompts of messages": asked(
        {"messages": [m("user", "hi"), m("assistant", "yo"), m("user", "hi")], "ground_truth": "x"},
        U,
        A,
        U,
        reference="x",
    ),
    "prompts with a system prompt and no answer": asked({"prompt": "hi", "system": "be", "solution": None}, BE, U),
    "prompts in other columns": (
        "prompts",
        {"q": "hi", "a": "x"},
        {"prompt": "q", "reference": "a"},
        Question(Example((U,)), "x", {"q": "hi", "a": "x"}),
    ),
}
