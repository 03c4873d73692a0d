"""One at a time: a lock on a file that the system opens again by itself when its holder ends, however it ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(Exception):
    """Another process holds the lock."""


def hold(path: Path) -> int:
    """Take a lock until this process ends, and leave its number in the file.

    Returns:
        The handle of the open file.

    Raises:
        BusyError: when another process has it; the message names that process.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        other = os.read(handle, 32).decode() or "unknown"
        os.close(handle)
        raise BusyError(
            f"another run is at work in {path.parent} (process {other}). Wait for it, stop it, or give another folder."
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Be the only one that makes a file; another that is at it, such as the job of a run that was killed, is waited for."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        clear(target)
        yield
    finally:
        os.close(handle)


def clear(target: Path) -> None:
    """Remove what a killed process had begun to write beside a file."""
    for leftover in target.parent.glob(f".{target.name}.*{target.suffix}"):
        leftover.unlink()
