"""Data sets of the Hugging Face Hub, streamed. No code of a data set is ever run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.files import sha256_text
from tunekit.data.readers.record import Record

WITH_OWNER = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BARE = re.compile(r"[A-Za-z0-9][\w.-]*")


def is_id(path: str, revision: str | None) -> bool:
    """True for ``owner/name``; for a bare ``name`` only where a revision is given too."""
    return bool(WITH_OWNER.fullmatch(path) or (revision is not None and BARE.fullmatch(path)))


def shown(path: str, name: str | None, revision: str | None, split: str | None) -> str:
    """How the source is named in messages: ``owner/name@main[train]``, with the configuration after a colon."""
    return f"{path}{f':{name}' if name else ''}@{revision or 'main'}[{split or 'train'}]"


def read(path: str, name: str | None, revision: str | None, split: str | None) -> Iterator[Record]:
    """Yields the split's rows (``train`` by default), numbered from 1.

    Raises:
        MachineError: the Hub cannot be reached, or has no such data set for this user.
        UserError: the data set has no such split or configuration.
        DataError: its files cannot be read.
    """
    import datasets

    with _explained(path):
        rows = datasets.load_dataset(path, name, split=split or "train", revision=revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield number, dict(row)


def fingerprint(path: str, name: str | None, revision: str | None, split: str | None) -> dict[str, Any]:
    """The data set and the commit that its revision stands for now.

    Raises:
        MachineError: the Hub cannot be reached, or has no such data set for this user.
    """
    import huggingface_hub

    with _explained(path):
        commit = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
    named = shown(path, name, commit, split)
    return {"file": named, "size": 0, "sha256": sha256_text(named)}


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns what the Hub's libraries raise into tunekit's errors."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # the base error of whichever HTTP client this release of the Hub library is built on (httpx or httpx2)
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except DatasetNotFoundError as error:
        fix = f"check the name; log in for a private one (hf auth login); a local folder is written './{path}'"
        raise MachineError(f"the Hub shows no data set '{path}': {_first(error)}", fix=fix) from error
    except (OSError, transport) as error:
        fix = "check the network and HF_HUB_OFFLINE, or download the data set and give its folder"
        raise MachineError(f"cannot reach the data set '{path}' on the Hub: {_first(error)}", fix=fix) from error
    except ValueError as error:
        fix = "check `split`, `name` (the configuration) and `revision`"
        raise UserError(f"the data set '{path}' cannot be opened like this: {_first(error)}", fix=fix) from error
    except (DatasetsError, RuntimeError) as error:
        fix = "tunekit runs no code of a data set: convert it to Parquet or JSON Lines first"
        raise DataError(f"the data set '{path}' cannot be read: {_first(error)}", fix=fix) from error


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
