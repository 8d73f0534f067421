"""One run folder has one owner: a lock that the kernel takes back when its process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tunekit.core.errors import MachineError, UserError
from tunekit.runs.wording import now_utc, when

LOCK_NAME = ".lock"
"""The lock file's name within the run folder."""

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_FLOCK = struct.Struct("hhqqi")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_LONGEST = 65_536  # bytes read of a lock file; ours have about 120


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run folder; ``pid`` is None where the lock file does not tell. ``started`` is ISO 8601, UTC."""

    pid: int | None
    host: str
    started: str

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        return f"process {self.pid} on {self.host}, since {when(self.started)} UTC"


# Folders this process holds: the kernel grants a POSIX lock to the same process twice, and drops it as soon as the
# process closes any descriptor of the file. So whether it is ours is answered from here, and the file stays closed.
_held: dict[str, RunLock] = {}
_mutex = threading.Lock()


def _silent(_: str) -> None:
    pass


class RunLock:
    """Ownership of a run folder, which must exist, for the length of a ``with`` block.

    The lock is a POSIX record lock: a forked process, such as one that loads data, does not inherit it, so it cannot
    outlive its owner. Nothing else in the owning process may open the lock file: closing it would free the lock.

    Args:
        folder: the run folder.
        say: is told when the lock of a process that died is taken over.

    Raises:
        UserError: on entering; another run holds the folder, or one of another host left its lock.
        MachineError: on entering; the file system has no locks.
        OSError: on entering; as the file system says (no such folder, no permission, no space).
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = _silent) -> None:
        self.folder = folder
        self.holder = Holder(None, "", "")
        self._say = say
        self._key = ""
        self._descriptor = -1

    def __enter__(self) -> Self:
        with _mutex:
            left = self._take()
        try:
            if left is not None:
                whose = "a process that is not known" if left.pid is None else f"process {left.pid}"
                self._say(f"recovered the lock of {whose}, which ended without releasing it")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _take(self) -> Holder | None:
        """Makes the folder ours; returns who left a lock behind, None when nobody did."""
        key = str(self.folder.resolve())
        if (own := _of_this_process(key)) is not None:
            raise _in_use(self.folder, own.holder)
        descriptor = _lock(self.folder)
        try:
            left = _read(descriptor)
            if left is not None and _is_foreign(left):
                raise _left_elsewhere(self.folder, left)
            mine = Holder(os.getpid(), socket.gethostname(), now_utc())
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(mine) | {"command": "tunekit"}).encode() + b"\n", 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._key, self._descriptor, self.holder = key, descriptor, mine
        _held[key] = self
        return left

    def _release(self) -> None:
        if self.holder.pid != os.getpid():  # a forked process leaves the block: the lock is its parent's
            return
        with _mutex:
            try:
                os.ftruncate(self._descriptor, 0)
                with suppress(OSError):  # an empty file that cannot be removed is a free one all the same
                    if _is_at(self._descriptor, Path(self._key, LOCK_NAME)):
                        Path(self._key, LOCK_NAME).unlink()
            finally:
                os.close(self._descriptor)
                del _held[self._key]


def holder(folder: Path) -> Holder | None:
    """Who holds the folder now, None when it is free. Asks the kernel without taking the lock or writing anything.

    Where the lock file names another host, that process is returned: the locks of a shared file system need not reach
    from host to host, so whether it lives cannot be told from here.

    Raises:
        OSError: as the file system says (no permission, no locks).
    """
    with _mutex:
        own = _of_this_process(str(folder.resolve()))
        if own is not None:
            return own.holder
        try:
            descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            found = _read(descriptor)
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
        finally:
            os.close(descriptor)
    if kind != fcntl.F_UNLCK:
        return found or Holder(None, "", "")
    return found if found is not None and _is_foreign(found) else None


def is_held(folder: Path) -> bool:
    """Whether a run owns the folder now, this process's own included; see ``holder`` for other hosts.

    Raises:
        OSError: as the file system says (no permission, no locks).
    """
    return holder(folder) is not None


def _of_this_process(key: str) -> RunLock | None:
    """The lock that this process holds; what a forked process finds in its copy of the list is its parent's."""
    own = _held.get(key)
    return own if own is not None and own.holder.pid == os.getpid() else None


def _lock(folder: Path) -> int:
    """A descriptor of the lock file, locked."""
    path = folder / LOCK_NAME
    while True:
        # O_NOFOLLOW: the file is written to, and what a link points to must not be
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        taken = False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # between opening and locking, the owner may have removed the file: then this locked what no one else sees
            taken = _is_at(descriptor, path)
        except OSError as error:
            raise _refusal(error, folder, descriptor) from error
        finally:
            if not taken:
                os.close(descriptor)
        if taken:
            return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Holder | None:
    """Who wrote the lock file: None when it is empty, and no pid when it says nothing that makes sense."""
    text = os.pread(descriptor, _LONGEST, 0)
    if not text:
        return None
    unknown = Holder(None, "", "")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return unknown
    if not isinstance(value, dict):
        return unknown
    pid, host, started = (value.get(name) for name in ("pid", "host", "started"))
    if type(pid) is int and isinstance(host, str) and host and isinstance(started, str):
        return Holder(pid, host, started)
    return unknown


def _is_foreign(holder: Holder) -> bool:
    return holder.pid is not None and holder.host != socket.gethostname()


def _refusal(error: OSError, folder: Path, descriptor: int) -> Exception:
    if error.errno in (errno.EACCES, errno.EAGAIN):
        return _in_use(folder, _read(descriptor) or Holder(None, "", ""))
    if error.errno in _NO_LOCKS:
        return MachineError(
            f"the file system of the run folder has no locks ({error.strerror}), so two runs could write to it at once",
            where=str(folder),
            fix="name a folder on another file system, for example a local disk (output.dir)",
        )
    return error


def _in_use(folder: Path, holder: Holder) -> UserError:
    return UserError(
        f"the run folder is in use by {holder}",
        where=str(folder),
        fix="wait for that run to end, stop it, or name another folder (output.dir)",
    )


def _left_elsewhere(folder: Path, left: Holder) -> UserError:
    return UserError(
        f"the run folder belongs to {left}; whether it still runs cannot be told from this host",
        where=str(folder),
        fix=f"make sure that process is gone, then delete {folder / LOCK_NAME}; or name another folder (output.dir)",
    )
