# SPDX-License-Identifier: Apache-2.0
"""One writer per run folder: the lock that a training process holds from its first look at a folder
to its end."""

import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from experiments.runner.errors import UserError

LOCK = ".lock"


class FolderLock:
    """Holds `<workdir>/.lock`; the system frees it when its process ends, however that ends.

    The file stays behind, empty. Where the run did not start (`started` was not set) the file, and
    folders made for it, are removed again. On a file system without locks, two writers are not
    told apart.

    Raises:
        UserError: on entry, another process holds it; nothing is written.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.started = False

    def __enter__(self) -> "FolderLock":
        self._path = self.workdir / LOCK
        self._made = [p for p in (self.workdir, *self.workdir.parents) if not p.exists()]
        self._was_there = self._path.exists()
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._file = _locked(self._path, self.workdir)
        except OSError as error:
            raise UserError(f"--workdir={self.workdir} cannot be written: {error}") from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _replace_content(self._file, f"process {os.getpid()} on {socket.gethostname()} since {now}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file as file:
            _replace_content(file, "")
            if self.started or self._was_there:
                return
            self._path.unlink(missing_ok=True)
            for folder in self._made:  # innermost first
                if any(folder.iterdir()):
                    return
                folder.rmdir()


def _locked(path: Path, workdir: Path) -> IO[str]:
    """The open lock file, once it is ours and still the one in the folder."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise UserError(
                f"--workdir={workdir} is being written by {holder}: wait for it, stop it, or give "
                "another --workdir"
            ) from error
        # Its last holder may have removed it between our open and our lock.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _replace_content(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
