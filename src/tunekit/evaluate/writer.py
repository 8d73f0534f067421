"""What engines of models that write have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunekit.core.errors import UserError
from tunekit.core.progress import Screen
from tunekit.evaluate.contract import Conversation, Score


class Writer:
    """An engine that gives likelihoods and text, and no scores."""

    def scores(
        self,
        requests: Sequence[Conversation],
        screen: Screen,
        what: str,
        done: Callable[[int, Score], None] = lambda index, answer: None,
    ) -> list[Score]:
        """Refuses them.

        Raises:
            UserError: always.
        """
        raise UserError(f"{what} asks for scores, which a model that writes does not give", fix="name a reward model")
