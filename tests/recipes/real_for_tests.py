"""What each real file must come to, worked out with json and transformers alone: no code of tunekit's data room."""

import json


def conversations(name, path):
    """The rows of a file as OpenAI messages and tools, in the file's order."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if name == "toolcalls" else [json.loads(line) for line in text.split("\n") if line]
    return [_READ[name](row) for row in rows]


def _pair(asked, answered):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}], None


def _alpaca(instruction, given, output):
    return _pair(f"{instruction}\n\n{given}" if given.strip() else instruction, output)


def _best_path(row):
    """The best-ranked reply at each message, else the first; up to the last answer."""
    node, messages = row["prompt"], []
    while node is not None:
        messages.append({"role": {"prompter": "user"}.get(node["role"], node["role"]), "content": node["text"]})
        there = [reply for reply in node["replies"] if not reply.get("deleted")]
        ranked = sorted((r for r in there if r.get("rank") is not None), key=lambda r: r["rank"])
        node = (ranked or there or [None])[0]
    while messages[-1]["role"] != "assistant":
        messages.pop()
    return messages, None


def _calls(row):
    roles, messages = {"human": "user", "gpt": "assistant", "observation": "tool"}, []
    for turn in row["conversations"]:
        if turn["from"] == "function_call":
            called = json.loads(turn["value"])
            calls = [
                {"type": "function", "function": call} for call in (called if isinstance(called, list) else [called])
            ]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        else:
            messages.append({"role": roles[turn["from"]], "content": turn["value"]})
    tools = [{"type": "function", "function": tool} for tool in json.loads(row["tools"])]
    return messages, tools or None


_READ = {
    "gsm8k": lambda row: _pair(row["question"], row["answer"]),
    "huatuo": lambda row: _alpaca(row["instruction"], row["input"], row["output"]),
    "oasst": _best_path,
    "toolcalls": _calls,
    "self_instruct": lambda row: _alpaca(
        row["instruction"], row["instances"][0]["input"], row["instances"][0]["output"]
    ),
}


def expected(tokenizer, rows, limit, overlong, drop_duplicates):
    """(line, fate, tokens that stay) of every row, by the rules of the recipe reference."""
    seen, fates = set(), []
    for line, (messages, tools) in enumerate(rows, start=1):
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        asked = tokenizer.apply_chat_template(messages[:first], tools=tools, tokenize=False, add_generation_prompt=True)
        prompt = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        if drop_duplicates and text in seen:
            fates.append((line, "duplicate", 0))
        elif size > limit and (overlong == "drop" or prompt >= limit):
            fates.append((line, "dropped", 0))
        else:
            seen.add(text)
            fates.append((line, "truncated" if size > limit else "kept", min(size, limit)))
    return fates
