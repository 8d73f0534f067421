"""A function from a Python file of the user: found, called, and its faults told in words."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from tunekit.core.errors import TunekitError, UserError, out_of_memory
from tunekit.core.registry import nearest
from tunekit.rl.contract import Answer

_SHOWN = 60  # characters of an answer in a message


class UsersFunction:
    """A reward function, called as ``fn(prompts=[...], completions=[...], **columns)``: texts, and lists of values.

    Of what there is to pass it gets what its parameters name, or all of it where it takes ``**kwargs``. It returns a
    list of numbers; None stands for an answer that it says nothing of.

    Args:
        path: the file; it is run once.
        name: of the function in it.

    Raises:
        UserError: the file cannot be run, or has no such function.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._function = _function(_module(path), path, name)
        self._parameters = _parameters(self._function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in _signature(self._function))

    def __call__(self, answers: Sequence[Answer]) -> list[float | None]:
        """A number an answer, or None.

        Raises:
            UserError: the function raises, or returns something else; the answer is named.
        """
        if not answers:
            return []
        found = self._returned(answers)
        if hasattr(found, "tolist"):  # an array or a tensor
            found = found.tolist()
        if isinstance(found, str) or not isinstance(found, Sequence):
            what = f"returned {type(found).__name__}, not a list"
            raise self._fault(what, answers[0], _WANTED, "; the first answer is")
        if len(found) != len(answers):
            what = f"returned {len(found)} values for {len(answers)} answers"
            raise self._fault(what, answers[0], _WANTED, "; the first answer is")
        return [self._number(value, answer) for value, answer in zip(found, answers)]

    def _number(self, value: Any, answer: Answer) -> float | None:
        if value is None:
            return None
        if not isinstance(value, Real):
            raise self._fault(f"returned {value!r:.60}, which is no number,", answer, _WANTED)
        if not math.isfinite(value):
            raise self._fault(f"returned {value}", answer, "return a finite number, or None where it does not apply")
        return float(value)

    def _returned(self, answers: Sequence[Answer]) -> Any:
        arguments = self._arguments(answers)
        try:
            return self._function(**arguments)
        except BaseException as error:
            if _is_fault(error):
                self._blame(answers, error)
            raise

    def _blame(self, answers: Sequence[Answer], error: BaseException) -> None:
        """Raises in words what the function raised, for the one answer that it raises for by itself."""
        if len(answers) > 1:
            for answer in answers:
                self._returned([answer])
        together = f"the {len(answers)} answers together that begin with " if len(answers) > 1 else ""
        what, of = f"raised {_told(error)}", f" for {together}the answer"
        raise self._fault(what, answers[0], f"see {_line(error, self.path)}", of) from error

    def _arguments(self, answers: Sequence[Answer]) -> dict[str, Any]:
        columns = dict.fromkeys(name for answer in answers for name in answer.columns)
        given: dict[str, Any] = {name: [answer.columns.get(name) for answer in answers] for name in columns}
        given |= {"prompts": [a.prompt for a in answers], "completions": [a.text for a in answers]}
        missing = [name for name, needed in self._parameters.items() if needed and name not in given]
        if missing:
            what = f"reward function '{self.name}' asks for '{missing[0]}', which is no column of the row"
            close = nearest(missing[0], columns)
            fix = f"{f'did you mean {close!r}? ' if close else ''}known: {', '.join(sorted(given))}"
            raise UserError(what, where=answers[0].where, fix=fix)
        return {name: value for name, value in given.items() if name in self._parameters or self._takes_all}

    def _fault(self, what: str, answer: Answer, fix: str, of: str = " for the answer") -> UserError:
        text = answer.text if len(answer.text) <= _SHOWN else answer.text[:_SHOWN] + "..."
        return UserError(f"reward function '{self.name}' {what}{of} {text!r}", where=answer.where, fix=fix)


_WANTED = "return a list with one number an answer, or None where it does not apply"


class _Loader(SourceFileLoader):
    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Nothing is written beside the user's file."""


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError("this is no file", where=str(path), fix="name a Python file")
    name = f"tunekit_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec: ModuleSpec | None = spec_from_loader(name, _Loader(name, str(path)))
    assert spec is not None and spec.loader is not None, path
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and the like look for what their annotations mean
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if _is_fault(error):
            alone = isinstance(error, ModuleNotFoundError) and (path.parent / f"{error.name}.py").exists()
            fix = "the file is run by itself: put what it imports from its folder into it" if alone else ""
            raise UserError(
                f"the file of the reward function cannot be run: {_told(error)}", where=_line(error, path), fix=fix
            ) from error
        raise
    return module


def _function(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    own = [key for key, value in vars(module).items() if _is_own(value, module) and not key.startswith("_")]
    found = getattr(module, name, None)
    if found is None or not callable(found):
        what = f"there is no function '{name}' in this file"
        if hasattr(module, name):
            what = f"'{name}' is no function, but of type {type(found).__name__}"
        listed = f"functions in the file: {', '.join(own)}"
        close = nearest(name, [key for key in own if key != name])
        fix = f"did you mean '{close}'?" if close else listed if own else f"write one: `def {name}(completions):`"
        raise UserError(what, where=str(path), fix=fix)
    if inspect.iscoroutinefunction(found) or inspect.isclass(found):
        what = f"'{name}' is {'a class' if inspect.isclass(found) else 'an async function'}"
        raise UserError(what, where=str(path), fix="name a plain function that returns a list of numbers")
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in _signature(found)):
        what = f"the function '{name}' has parameters that cannot be given by name"
        raise UserError(what, where=str(path), fix="take the `/` out of its parameters")
    return found  # type: ignore[no-any-return]


def _is_own(value: Any, module: ModuleType) -> bool:
    """Whether it is a function of the file itself: what the file imports is seldom a reward."""
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """The parameters that can be named, and whether each must be given."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default is p.empty for p in _signature(function) if p.kind in by_name}


def _is_fault(error: BaseException) -> bool:
    """Whether the user's code is at fault: not a stop from outside, not the machine's memory, not told already."""
    if isinstance(error, TunekitError) or out_of_memory(error):
        return False
    return isinstance(error, (Exception, SystemExit))


def _told(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:200]}" if words else type(error).__name__


def _line(error: BaseException, path: Path) -> str:
    """``file:line`` of the user's code that raised."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{path}:{error.lineno}"
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if Path(at.filename) == path]
    return f"{path}:{lines[-1]}" if lines else str(path)
