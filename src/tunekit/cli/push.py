"""`tunekit push`: send a run's model to the Hub, in one commit, after showing what would be sent."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.shared import Debug, guard
from tunekit.core.errors import MachineError, Problem, TunekitError, UserError, raise_all

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from tunekit.runs.layout import RunFolder
    from tunekit.runs.scrub import Scrubber

_TEXTS = (".json", ".jinja", ".md", ".txt")
_KINDS = (*_TEXTS, ".safetensors", ".model", ".tiktoken")  # .model: SentencePiece
_PLAIN_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# pieces of words: what looks like a path or a host there is one of a hundred thousand of them
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_THE_HUBS_OWN = ".gitattributes"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class _Target:
    name: str
    private: bool
    branch: str | None
    message: str
    replace: bool

    @property
    def visibility(self) -> str:
        return "private" if self.private else "public"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("push", rich_help_panel="Look back")(push)


def push(
    run: Annotated[Path, typer.Argument(help="A run that is done.", metavar="RUN")],
    to: Annotated[str, typer.Option("--to", help="The repository on the Hub; made if it is not there.", metavar="ID")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    revision: Annotated[
        str | None, typer.Option("--revision", help="The branch; made if it is not there.", metavar="BRANCH")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.", metavar="TEXT")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other content of the branch; its history keeps it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send it. Without, it is only shown what would be sent.")] = False,
    debug: Debug = False,
) -> None:
    """Send a run's model and its card to the Hub; without --yes, show what would be sent.

    Example: [bold]tunekit push runs/recipe --to org/name[/bold]

    Example: [bold]tunekit push runs/recipe --to org/name --public --yes[/bold]
    """
    with guard(debug=debug):
        from huggingface_hub import constants

        from tunekit.runs.layout import RunFolder
        from tunekit.runs.record import read_record
        from tunekit.runs.scrub import Scrubber

        folder = RunFolder(run)
        record = read_record(folder)
        if record.status != "done":
            fix = f"finish it first: tunekit resume {run}"
            raise UserError(f"this run is not done: its record says '{record.status}'", where=str(run), fix=fix)
        target = _Target(to, private, revision, message or f"Model of a tunekit {record.method} run", replace)
        _check_names(target)
        scrubber = Scrubber.of_this_machine(run)
        files = _files(folder, scrubber)
        _show(target, folder, files, constants.ENDPOINT)
        if not yes:
            offline = " (HF_HUB_OFFLINE is set: it could not be)" if constants.HF_HUB_OFFLINE else ""
            typer.echo(f"\nnothing was sent{offline}; add --yes to send it")
            return
        if constants.HF_HUB_OFFLINE:
            raise MachineError(
                "HF_HUB_OFFLINE is set: the Hub may not be reached", where="environment", fix="unset it, and push again"
            )
        typer.echo(f"\nsent: {_send(target, folder.model, files, scrubber)}")


def _check_names(target: _Target) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(target.name, "README.md")  # asks no network; the name is checked
    except HFValidationError as error:
        raise UserError(str(error), where="--to", fix="a repository on the Hub is named org/name") from None
    if target.name.count("/") != 1:
        what = f"'{target.name}' does not say whose repository it is"
        raise UserError(what, where="--to", fix="name it org/name, or user/name")


def _files(folder: RunFolder, scrubber: Scrubber) -> list[Path]:
    """The files to send, sorted by path.

    Raises:
        UserError: there are none, some that are no model files, or private text in some; all of them are named.
    """
    from tunekit.model.artefact import verify

    found = sorted(path for path in folder.model.rglob("*") if not path.is_dir() or path.is_symlink())
    if not any(path.suffix == ".safetensors" for path in found):
        raise UserError("there are no weights in it", where=str(folder.model), fix="name a run that has its model/")
    problems = []
    for path in found:
        if path.is_symlink():
            fix = "put the file itself there, or take the link away"
            problems.append(Problem("a link is not sent: it may lead anywhere", str(path), fix))
        elif path.suffix not in _KINDS and path.name not in _PLAIN_NAMES:
            problems.append(Problem("this is not a file of a model", str(path), "take it out of the folder"))
        elif path.suffix in _TEXTS or path.name in _PLAIN_NAMES:
            problems += _private(path, scrubber)
    raise_all(UserError, problems)
    verify(folder.model)
    return found


def _private(path: Path, scrubber: Scrubber) -> Iterator[Problem]:
    """Lines with a secret, or with a path or a name of this machine."""
    from tunekit.runs.scrub import Scrubber

    vocabulary = path.name in _VOCABULARIES
    # a card and a template are content, in which a foreign path may stand; a configuration has no use for one
    content = vocabulary or path.suffix != ".json" or path.name == "tokenizer_config.json"
    if vocabulary:
        nowhere = Path("/")
        scrubber = Scrubber(nowhere, nowhere, nowhere, "", scrubber.environ)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        text = line.replace("://", ":") if vocabulary else line  # before a piece with @ it would look like a login
        if scrubber.text(text, content=content) != text:
            what = "a secret, or a path or name of this machine, stands here"
            yield Problem(what, f"{path}:{number}", "take it out; a base model is best named by its Hub id")


def _show(target: _Target, folder: RunFolder, files: Sequence[Path], endpoint: str) -> None:
    sizes = [path.stat().st_size for path in files]
    typer.echo(f"to       {endpoint}/{target.name}, branch {target.branch or 'main'}, {target.visibility}")
    typer.echo(f"from     {folder.model}\nmessage  {target.message}\n")
    for path, size in zip(files, sizes, strict=True):
        typer.echo(f"  {_size(size):>10}  {path.relative_to(folder.model).as_posix()}")
    typer.echo(f"  {_size(sum(sizes)):>10}  in {len(files)} files")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _send(target: _Target, model: Path, files: Sequence[Path], scrubber: Scrubber) -> str:
    """Sends the files in one commit and compares what the Hub holds then; returns the commit's address.

    Raises:
        UserError: the repository has other content, or is not as private or public as was asked.
        MachineError: nobody is logged in, there is no permission, the connection broke, or not everything arrived.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    import tunekit

    if not sys.stderr.isatty():
        disable_progress_bars()
    token = get_token()
    if token is None:
        raise MachineError("nobody is logged in to the Hub on this machine", where=target.name, fix=_LOGIN)
    api = HfApi(library_name="tunekit", library_version=tunekit.__version__)
    named = {path.relative_to(model).as_posix(): path for path in files}
    with _explained(target, scrubber, token):
        parent, obsolete = _made_ready(api, target, named)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationDelete(path_in_repo=name) for name in obsolete),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in named.items()),
        ]
        done = api.create_commit(
            target.name,
            operations,
            commit_message=target.message,
            revision=target.branch,
            parent_commit=parent,
        )
        held = _held(api, target.name, done.oid)
    wrong = [name for name, path in named.items() if not _same(path, held.get(name))]
    raise_all(MachineError, [Problem("the Hub does not hold this file as it was sent", n, "push again") for n in wrong])
    return str(done.commit_url)


def _made_ready(api: HfApi, target: _Target, named: dict[str, Path]) -> tuple[str | None, list[str]]:
    """Makes repository and branch if need be; returns the commit to build on, and the files to delete from it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = bool(api.model_info(target.name).private)
    except RepositoryNotFoundError:
        api.create_repo(target.name, private=target.private)
        private = target.private
    if private != target.private:
        is_ = "private" if private else "public"
        what = f"the repository is there already, and it is {is_}, not {target.visibility}"
        fix = f"say --{is_} if that is meant, or change it in its settings on the Hub"
        raise UserError(what, where=target.name, fix=fix)
    new = False
    if target.branch is not None:
        new = target.branch not in {branch.name for branch in api.list_repo_refs(target.name).branches}
        if new:
            api.create_branch(target.name, branch=target.branch)
    head = api.model_info(target.name, revision=target.branch).sha
    held = _held(api, target.name, head)
    others = sorted(set(held) - set(named) - {_THE_HUBS_OWN})
    changed = sorted(name for name in set(held) & set(named) if not _same(named[name], held[name]))
    if not (new or target.replace) and (others or changed):
        first, *more = [*changed, *others]
        raise UserError(
            f"the branch holds other content: {first}{f' and {len(more)} more files' if more else ''}",
            where=f"{target.name}, branch {target.branch or 'main'}",
            fix="name another repository, or a new branch by --revision; or say --replace: the history keeps it",
        )
    return head, others


def _held(api: HfApi, name: str, commit: str | None) -> dict[str, Any]:
    """The files of a commit by name."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(name, recursive=True, revision=commit)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _same(path: Path, held: Any) -> bool:
    """Whether a file on the Hub has this file's bytes: by sha256 where it is stored as a large one, else by git's."""
    size = path.stat().st_size
    if held is None or held.size != size:
        return False
    digest = hashlib.sha256() if held.lfs else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return bool(digest.hexdigest() == (held.lfs.sha256 if held.lfs else held.blob_id))


@contextmanager
def _explained(target: _Target, scrubber: Scrubber, token: str) -> Iterator[None]:
    """Turns what the Hub's library raises into tunekit's errors; no message of a server shows a token."""
    from huggingface_hub.errors import HfHubHTTPError

    # the base error of whichever HTTP client this release of the Hub library is built on
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (OSError, transport, RuntimeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__  # a thread of the upload wraps what it met
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        said = (cause.server_message if isinstance(cause, HfHubHTTPError) else None) or str(cause)
        line = next((part.strip() for part in said.splitlines() if part.strip()), type(cause).__name__)
        raise _block(target, status, scrubber.text(line.replace(token, "<token>"))[:300]) from None


def _block(target: _Target, status: int | None, said: str) -> TunekitError:
    where, again = target.name, "nothing of it was committed; push again"
    if status == 401:
        return MachineError(f"the Hub does not accept the login: {said}", where=where, fix=_LOGIN)
    if status == 403:
        fix = "take a token with write permission for it, or name a repository of your own (`hf auth whoami`)"
        return MachineError(f"this login may not write there: {said}", where=where, fix=fix)
    if status == 409:
        fix = "name another one, or log in as somebody who may see it"
        return MachineError(f"the repository is there, but this login does not see it: {said}", where=where, fix=fix)
    if status == 412:
        return MachineError(f"somebody else wrote to it in the meantime: {said}", where=where, fix=again)
    if status == 400:
        return UserError(f"the Hub refuses this: {said}", where=where, fix="mend what it names")
    if status is not None:
        return MachineError(f"the Hub answered with an error ({status}): {said}", where=where, fix=again)
    fix = f"see to the network and the login (`hf auth whoami`); {again}"
    return MachineError(f"the Hub could not be reached, or the upload broke off: {said}", where=where, fix=fix)
