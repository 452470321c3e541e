"""Answers kept on disk, so that a run can be played again: one JSON file per call, named by a hash of the call."""

import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any


class Replay:
    """A folder of answers; safe for threads and for processes that share it.

    Args:
        folder: where the files lie; made if it is missing. None keeps nothing.
    """

    def __init__(self, folder: str | os.PathLike | None):
        self._folder = pathlib.Path(folder).expanduser() if folder else None

    @staticmethod
    def key(call: dict[str, Any]) -> str:
        """Returns the name of a call: a hash of everything that its answer may depend on."""
        return hashlib.sha256(json.dumps(call, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """Returns the text that answered a call; None if there is none, or a file that is broken."""
        if self._folder is None:
            return None
        try:
            reply = json.loads(self._path(key).read_text(encoding='utf-8'))['reply']
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return reply if isinstance(reply, str) else None

    def put(self, key: str, call: dict[str, Any], reply: str) -> None:
        """Keeps an answer; the file appears whole or not at all.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._folder is None:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix='.part')
        try:
            with os.fdopen(handle, 'w', encoding='utf-8') as file:
                json.dump({'call': call, 'reply': reply}, file, ensure_ascii=False)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / key[:2] / f'{key}.json'
