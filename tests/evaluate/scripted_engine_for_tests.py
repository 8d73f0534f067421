"""An engine without a model: what texts are worth and how prompts are answered is written by the test."""

from __future__ import annotations

from tunekit.evaluate.contract import Generated, Row, Scored

NAME = "rows.jsonl"


def rows(*values, name: str = NAME):
    return [Row(value, f"{name}:{number}") for number, value in enumerate(values, start=1)]


class Letters:
    """One token a character; a chat is ``<role>content`` for each turn, then ``<assistant>``."""

    bos_token, bos_token_id = "\x01", 1
    eos_token_id = 2

    def __init__(self, chat: bool = True) -> None:
        self.chat_template = "yes" if chat else None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert add_generation_prompt and not tokenize
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


class Scripted:
    """Answers from tables.

    Args:
        worth: log-likelihood by (what stands before, what is scored), or by what is scored alone.
        answers: the generated text by (prompt, seed), or by prompt alone.
    """

    def __init__(self, worth=None, answers=None, positions=None, chat=True) -> None:
        self.worth, self.answers, self.positions = worth or {}, answers or {}, positions
        self.tokenizer = Letters(chat)
        self.asked = []

    def likelihoods(self, requests, screen, what, done=lambda index, answer: None):
        found = []
        for index, request in enumerate(requests):
            assert not request.scored[0] and any(request.scored)
            split = request.scored.index(True)
            assert all(request.scored[split:])
            before, text = words(request.ids[:split]), words(request.ids[split:])
            self.asked.append((before, text))
            value = self.worth[before, text] if (before, text) in self.worth else self.worth[text]
            found.append(Scored(value, len(request.ids) - split, False))
            done(index, found[-1])
        return found

    def generate(self, requests, screen, what, done=lambda index, answer: None):
        found = []
        for index, request in enumerate(requests):
            self.asked.append(request)
            prompt = words(request.ids)
            key = (prompt, request.seed)
            text = self.answers[key] if key in self.answers else self.answers[prompt]
            found.append(Generated(text, len(text), True))
            done(index, found[-1])
        return found


def words(ids):
    return "".join(chr(one) for one in ids if one > 2)
