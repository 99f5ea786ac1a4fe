"""A file mapped read-only into memory."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np

from zoo.errors import FormatError


class MappedFile:
    """A regular file, mapped whole and read-only; links to regular files are followed.

    Raises `error` (a FormatError class) when the path is missing, unreadable or no regular file.
    """

    def __init__(self, path: Path, error: type[FormatError] = FormatError) -> None:
        self.path = path
        self._error = error
        self._closed = False
        self._map: mmap.mmap | None = None
        try:
            # Looked at before it is opened: opening a pipe would wait for a writer.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise error("not a regular file", path=path, remedy="name a model file or a directory of them")
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size:
                    self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise error(_absent(path), path=path, remedy="download the file again, or correct the path") from None
        except (OSError, ValueError) as problem:
            raise error(
                f"cannot be opened: {problem}", path=path, remedy="check the permissions and the disk"
            ) from None

    def view(self, offset: int, nbytes: int) -> memoryview:
        """The bytes [offset, offset + nbytes), read-only and not copied; they stay valid after `close`.

        Raises the error class of the file when the range lies outside it, or the file shrank since it was opened
        (touching such a page would kill the process).
        """
        if self._closed:
            raise self._error("used after it was closed", path=self.path, remedy="open the model again")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise self._error(
                f"{nbytes} bytes asked for at byte {offset}, but the file has {self.size}",
                path=self.path,
                position=self.size,
                remedy="the file is cut off or damaged: download it again",
            )
        if self._map is None:
            return memoryview(b"")
        now = self._map.size()
        if now < self.size:
            raise self._error(
                f"shrank from {self.size} to {now} bytes while it was in use",
                path=self.path,
                position=now,
                remedy="do not write to a model file in use; load it again",
            )
        return memoryview(self._map)[offset : offset + nbytes]

    def release(self, address: int, nbytes: int) -> None:
        """Give the memory of these bytes back, as far as they are whole pages of this map; reading them maps them anew.

        A range of memory that is not of this map is left alone.
        """
        if self._map is None:
            return
        start = address - int(np.frombuffer(self._map, np.uint8).ctypes.data)
        if not 0 <= start <= start + nbytes <= self.size:
            return
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Let go of the map. The memory is given back when the last view of it is gone."""
        self._closed = True
        self._map = None


def _absent(path: Path) -> str:
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, which does not exist"
    return "does not exist"
