"""Files that are whole or absent."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place; an error or a kill leaves the old file as it was.

    Args:
        path: the file to write; its folder is made.
        write: called with the path of the temporary file.

    Raises:
        OSError: when the folder cannot be written or the disk is full; what was there before is as it was, and nothing is
            left behind.
    """
    try:
        _write(path, write)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} was not written ({error.strerror or error}) and is as it was before; free some space or give a folder "
            "that can be written, then run again",
        ) from error
    _keep_name(path.parent)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _keep_name(folder: Path) -> None:
    """Have the disk remember that the file has its name now, where folders can be told to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
