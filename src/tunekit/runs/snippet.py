"""How a model card says the model is loaded: by a program that runs in the model's folder as it stands."""

from __future__ import annotations

_RANDOM = ("builtin:random", "init=random")  # in the name of a base whose weights stand nowhere

_CHAT = """\
messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
_TEXT = """\
inputs = tokenizer("Once upon a time", return_tensors="pt")
"""
_ANSWER = """\
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_FOLDER = """\
folder = "."  # where this file lies, or the name of its repository on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
_RESIZE = """\
if len(tokenizer) > model.get_input_embeddings().num_embeddings:
    model.resize_token_embeddings(len(tokenizer))
"""


def loading_words(base: str, *, on_hub: bool, adapter: str | None, chat: bool, more_rows: bool) -> str:
    """How a model is loaded and asked something.

    Args:
        base: the name of the base.
        on_hub: whether that is a Hub id.
        adapter: its kind, where the folder holds an adapter and not a whole model.
        chat: whether it was trained on conversations.
        more_rows: whether tokens were added to the base's tokenizer.
    """
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    own, lines = [], [_FOLDER]
    if adapter is None:
        lines.append("model = AutoModelForCausalLM.from_pretrained(folder)\n")
    elif any(word in base for word in _RANDOM):
        return "The base has random weights, which tunekit makes from the recipe's seed: nothing else can load this."
    else:
        if adapter == "bottleneck":
            own.append("from tunekit.model.bottleneck import register")
            lines.append("register()  # PEFT itself has no such kind\n")
        if on_hub:
            imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
            lines.append("model = AutoPeftModelForCausalLM.from_pretrained(folder)\n")
        else:
            imports = ["from peft import PeftModel", *imports]
            place = f'"{base}"  # the folder of the base model'
            if base.startswith("builtin:"):
                own.append("from tunekit.model.names import resolve_name")
                place = f'resolve_name("{base}").location'
            lines += [f"base = {place}\n", "model = AutoModelForCausalLM.from_pretrained(base)\n"]
            lines += [_RESIZE] if more_rows else []
            lines.append("model = PeftModel.from_pretrained(model, folder)\n")
    head = "".join(f"{line}\n" for line in [*imports, *([""] if own else []), *own])
    return f"```python\n{head}\n{''.join(lines)}\n{_CHAT if chat else _TEXT}{_ANSWER}```"
