"""Questions of many threads, answered together: each thread waits while one more takes what has gathered.

batcher = Batcher(lambda questions: [question + 1 for question in questions], size=8)
batcher.ask('small', 1)  # from any thread; 2
batcher.close()
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

PATIENCE = 0.01  # seconds that a batch with room waits for further questions


class Closed(RuntimeError):
    """The batcher answers no more."""


@dataclasses.dataclass(eq=False)
class _Question:
    kind: Hashable
    content: Any
    answered: threading.Event = dataclasses.field(default_factory=threading.Event)
    answer: Any = None
    error: Exception | None = None


class Batcher:
    """Answers questions of one kind at a time, the oldest first.

    Args:
        answer: questions -> their answers; called in a thread of its own, never twice at once.
        size: most questions of a batch.
        patience: seconds that a batch with room waits for further questions.
    """

    def __init__(self, answer: Callable[[list[Any]], Sequence[Any]], *, size: int, patience: float = PATIENCE):
        self._answer, self._size, self._patience = answer, size, patience
        self._lock = threading.Lock()
        self._asked = threading.Condition(self._lock)
        self._waiting: collections.deque[_Question] = collections.deque()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name='batcher', daemon=True)
        self._thread.start()

    def ask(self, kind: Hashable, content: Any, *, timeout: float | None = None) -> Any:
        """Returns the answer to a question; waits for it, at most ``timeout`` seconds.

        Raises:
            Closed: there will be none.
            TimeoutError: there is none yet; if nobody has taken the question up, nobody will.
            Exception: whatever ``answer`` raised for the batch.
        """
        question = _Question(kind, content)
        with self._lock:
            if self._closed:
                raise Closed
            self._waiting.append(question)
            self._asked.notify()
        if not question.answered.wait(timeout):
            with self._lock:
                if question in self._waiting:
                    self._waiting.remove(question)
            raise TimeoutError
        if question.error is not None:
            raise question.error
        return question.answer

    def close(self) -> None:
        """Turns away who still waits, and returns once the batch that is being answered is done."""
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, collections.deque()
            self._asked.notify()
        for question in left:
            question.error = Closed()
            question.answered.set()
        self._thread.join()

    def _serve(self) -> None:
        while batch := self._next():
            try:
                answers = self._answer([question.content for question in batch])
                for question, answer in zip(batch, answers, strict=True):
                    question.answer = answer
            except Exception as error:  # it is those who asked that have to know
                for question in batch:
                    question.error = error
            for question in batch:
                question.answered.set()

    def _next(self) -> list[_Question]:
        """Waits for questions and takes the next batch; an empty one when closed."""
        with self._lock:
            while not self._closed:
                while not self._waiting and not self._closed:
                    self._asked.wait()
                end = time.monotonic() + self._patience
                while 0 < len(self._batch()) < self._size and (left := end - time.monotonic()) > 0:
                    self._asked.wait(left)
                if batch := self._batch():  # none where all who asked have given up, or it was closed
                    for question in batch:
                        self._waiting.remove(question)
                    return batch
            return []

    def _batch(self) -> list[_Question]:
        """Returns the oldest questions of the oldest one's kind; none where nothing waits."""
        return [question for question in self._waiting if question.kind == self._waiting[0].kind][: self._size]
