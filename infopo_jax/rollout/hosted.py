"""Rollouts of text environments: the model speaks in slots on the device while environments answer in threads.

Batching is continuous. A slot whose action has ended asks its environment and, where others are ready to speak, makes
room for them; its answer is fed when enough slots have one, or nobody can speak. A finished rollout's slot is taken by
the next. Keys are folded from group, member and the number of the token that is drawn: neither who sits where nor who
answered first changes what is said.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from infopo_jax.envs.text import TextEnv
from infopo_jax.lm.chat import Chat
from infopo_jax.rollout import slots as slots_lib
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.rollout.seating import Seating
from infopo_jax.rollout.workers import Reply, Workers

FEED_SHARE = 0.5  # of the seated must wait for the device before answers are fed while others could speak
PATIENCE = 0.25  # of a dispatch's time is waited for environments that answer at once
MOST_PATIENCE = 0.05  # seconds; a dispatch that compiled says nothing about the next
LOOK_SECONDS = 0.5  # between looks whether to stop, while nothing else is to be done
LEAVE_SECONDS = 5.0  # that environments have to close


@dataclasses.dataclass
class Clock:
    """Where a batch's time went, how many tokens were moved, and what went wrong."""

    decode: float = 0.0  # seconds on the device, sampling
    extend: float = 0.0  # seconds on the device, feeding prompts and answers
    env: float = 0.0  # seconds in environments, summed over threads
    wait: float = 0.0  # seconds in which the device had nothing to do but wait for them
    sampled: int = 0  # tokens
    fed: int = 0  # tokens
    retried: int = 0  # rollouts begun again because environment or user had failed
    masked: int = 0  # rollouts that failed for good: in no statistic and no loss
    failures: list[str] = dataclasses.field(default_factory=list)  # what happened, of those and of the retried


class RolloutsStopped(RuntimeError):
    """A batch was broken off because ``HostedRollout.stop`` was called."""


class RolloutsFailed(ValueError):
    """Too many rollouts of a batch failed; the message has the first failure's text."""


class HostedRollout:
    """Plays batches of episodes of a text environment.

    Args:
        make_env: returns a fresh environment, for one rollout. Called in threads, as are all methods but ``score``.
        chat: renders messages.
        graphdef: static part of the model.
        limits: of turns and tokens.
        num_slots: rows decoded at once.
        num_aside: rollouts kept aside on the device while their environment answers and others use their slots.
        chunk: decode steps per dispatch.
        feed_sizes: tokens of answers that a dispatch may feed per row, ascending.
        num_workers: environments that are asked at once.
        call_seconds: most that a call to an environment may take.
        retries: times that a rollout is begun again after environment or user failed.
        rollout_mesh: devices that the slots are divided over.
        cache_dtype: of the KV cache; None: the model's compute dtype.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        chat: Chat,
        graphdef: Any,
        limits: Limits,
        *,
        num_slots: int,
        num_aside: int = 0,
        chunk: int = 8,
        feed_sizes: tuple[int, ...] = slots_lib.FEED_SIZES,
        num_workers: int = 16,
        call_seconds: float = 120.0,
        retries: int = 1,
        rollout_mesh: jax.sharding.Mesh | None = None,
        cache_dtype: str | None = None,
    ):
        self.make_env, self.chat, self.limits = make_env, chat, limits
        self.num_workers, self.call_seconds, self.retries = num_workers, call_seconds, retries
        self.stopped = False
        self.slots = slots_lib.Slots(
            graphdef,
            num_slots=num_slots,
            num_aside=num_aside,
            max_tokens=limits.max_tokens,
            chunk=chunk,
            feed_sizes=feed_sizes,
            stop_ids=chat.stop_ids,
            mesh=rollout_mesh,
            cache_dtype=cache_dtype,
        )

    def rollout(
        self,
        params: Any,
        key: jax.Array,
        tasks: Sequence[Any],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        **truncation: float,
    ) -> tuple[list[Dialogue], Clock]:
        """Plays ``group_size`` episodes of every task.

        Args:
            params: of the model.
            key: of this batch.
            tasks: P task ids; a group shares the task and the reset seed.
            group_size: G.
            seed: host randomness of the environments (the wording of users).
            temperature: of sampling; 0 is greedy.
            **truncation: top_k, top_p and min_p of ``sampling.sample``, for evaluation.

        Returns:
            N = P * G finished dialogues in the order of their rows, and the clock.

        Raises:
            ValueError: a prompt is longer than allowed; the message names the task.
            RolloutsStopped: see ``stop``.
        """
        workers = Workers(self.num_workers, limit=self.call_seconds)
        dialogues = [
            Dialogue(self.chat, self.limits, task, group=g, member=m, seed=seed + 7919 * g)
            for g, task in enumerate(tasks)
            for m in range(group_size)
        ]
        batch = _Batch(self, workers, dialogues, {'temperature': temperature, **truncation})
        try:
            self.slots.begin(params, key)
            batch.play()
        finally:
            batch.leave()
            workers.close()
            self.slots.end()
        return batch.dialogues, batch.clock

    def stop(self) -> None:
        """Breaks off the batch that is being played, and every later one; also from a signal handler."""
        self.stopped = True


class _Batch:
    """One batch being played: what passes between its dialogues, the device and the environments."""

    def __init__(self, engine: HostedRollout, workers: Workers, dialogues: Sequence[Dialogue], draw: dict[str, float]):
        self.engine, self.workers, self.draw = engine, workers, draw
        self.device, self.clock = engine.slots, Clock()
        self.seating = Seating(dialogues, num_slots=self.device.num_slots, num_aside=self.device.num_aside)
        self.unheard: collections.deque[Reply] = collections.deque()
        self.attempts: collections.Counter[int] = collections.Counter()
        self.dispatch = 0.0  # seconds of the last dispatch
        self.usual = 0.0  # seconds that an environment takes, a running mean

    @property
    def dialogues(self) -> list[Dialogue]:
        """By row."""
        return self.seating.dialogues

    def play(self) -> None:
        """Plays until every rollout has ended."""
        while any(not d.ended for d in self.dialogues):
            if self.engine.stopped:
                raise RolloutsStopped('the rollouts were asked to stop')
            self._ask()
            self._listen()
            self._seat()
            busy = [d for d in self.seating.tenants() if d is not None]
            pending, speaking = sum(d.pending for d in busy), sum(d.speaking for d in busy)
            if pending and (pending >= FEED_SHARE * len(busy) or not speaking):
                self._feed()
            if speaking or pending:
                self._speak()

    def leave(self) -> None:
        """Lets all environments close, also those of a batch that an error ended; one that hangs is left behind."""
        for close in (*(dialogue.leave() for dialogue in self.dialogues), *(reply.drop for reply in self.unheard)):
            if close is not None:
                self.workers.submit(None, close)
        while self.workers.num_open and (replies := self.workers.collect(wait=LEAVE_SECONDS)):
            for reply in replies:
                if reply.owner is not None:
                    self.workers.submit(None, reply.drop)

    def _ask(self) -> None:
        """Hands openings and finished actions to the environments."""
        for row in self.seating.may_ask():
            dialogue = self.dialogues[row]
            if not dialogue.must_ask:
                continue
            call = dialogue.ask(self.engine.make_env)
            if call is not None:
                self.workers.submit((row, dialogue), call)
            else:  # the action was too long, which may have ended the dialogue
                self._settle(row, dialogue)

    def _listen(self) -> None:
        """Takes the replies that are there. Waits for some if there is nothing else to do, or if they come at once."""
        start = time.perf_counter()
        replies = self.workers.collect()
        idle = not replies and not self.seating.has_work()
        if idle:
            replies = self.workers.collect(wait=LOOK_SECONDS)
        patience = min(PATIENCE * self.dispatch, MOST_PATIENCE)
        end = time.perf_counter() + patience
        while self.usual < patience and self.workers.num_young(patience) and time.perf_counter() < end:
            replies += self.workers.collect(wait=end - time.perf_counter())
        if idle:
            self.clock.wait += time.perf_counter() - start
        self.unheard.extend(replies)
        while self.unheard:
            reply = self.unheard.popleft()
            self.clock.env += reply.seconds
            if reply.owner is not None:
                self._receive(*reply.owner, reply)

    def _receive(self, row: int, dialogue: Dialogue, reply: Reply) -> None:
        self.usual += 0.1 * (reply.seconds - self.usual)
        if reply.error is None:
            dialogue.receive(reply.value)
        else:
            dialogue.fail(reply.error)
        self._settle(row, dialogue)

    def _settle(self, row: int, dialogue: Dialogue) -> None:
        """Closes the environment of a dialogue that has ended, and queues one that failed anew."""
        close = dialogue.leave() if dialogue.ended else None
        if close is not None:
            self.workers.submit(None, close)
        if dialogue.valid:
            return
        self.attempts[row] += 1
        self.clock.failures.append(f'task {dialogue.task!r}: {dialogue.error_text}')
        if self.attempts[row] > self.engine.retries:
            self.clock.masked += 1
            return
        self.clock.retried += 1
        self.seating.begin_anew(row, dialogue.anew())

    def _seat(self) -> None:
        """Has the device follow who sits where now: swaps caches, and feeds new tenants their prompts."""
        start = time.perf_counter()
        swaps, new = self.seating.fill()
        if not swaps and not new:
            return
        if swaps:
            self.device.swap(swaps, [self._place(slot) for slot, _ in swaps])
        for _, slots in itertools.groupby(new, key=lambda slot: self.seating.at(slot).ids):
            self._open(list(slots))
        self.device.wait()
        self.clock.extend += time.perf_counter() - start

    def _place(self, slot: int) -> tuple[int, int]:
        dialogue = self.seating.at(slot)
        return dialogue.group, dialogue.member

    def _open(self, slots: list[int]) -> None:
        """Feeds one prompt to new tenants of some slots."""
        tenants = list(map(self.seating.at, slots))
        self.clock.fed += self.device.seat(slots, [self._place(slot) for slot in slots], tenants[0].ids)
        for dialogue in tenants:
            dialogue.take(len(dialogue.ids))

    def _feed(self) -> None:
        """Feeds all pending tokens."""
        start, tenants = time.perf_counter(), self.seating.tenants()
        fed = self._numbers(tenants, 'fed')
        answers = {slot: d.take(d.num_pending) for slot, d in enumerate(tenants) if d is not None and d.pending}
        self.device.feed(answers, fed)
        self.device.wait()
        self.clock.fed += sum(map(len, answers.values()))
        self.clock.extend += time.perf_counter() - start

    def _speak(self) -> None:
        """Samples up to ``chunk`` tokens in every slot whose agent speaks."""
        start, tenants = time.perf_counter(), self.seating.tenants()
        fed, drawn = (self._numbers(tenants, name) for name in ('fed', 'drawn'))
        budget = np.array([d.budget if d is not None and d.speaking else 0 for d in tenants], np.int32)
        tokens, logps, count = self.device.decode(fed, drawn, budget, **self.draw)
        for i in np.flatnonzero(budget):
            tenants[i].hear(tokens[i, : count[i]], logps[i, : count[i]])
        self.dispatch = time.perf_counter() - start
        self.clock.sampled += int(count.sum())
        self.clock.decode += self.dispatch

    def _numbers(self, tenants: list[Dialogue | None], name: str) -> np.ndarray:
        """Returns a number of each tenant, [slots] int32; 0 where nobody sits."""
        return np.array([getattr(d, name, 0) for d in tenants], np.int32)
