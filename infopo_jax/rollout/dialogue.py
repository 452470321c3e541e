"""One dialogue of the agent with a text environment, as ids: what was said, what is still to be fed, how it ended."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from infopo_jax.envs import tools as tools_lib
from infopo_jax.envs.text import Message, TextEnv
from infopo_jax.lm.chat import Chat
from infopo_jax.rollout import contract
from infopo_jax.types import EndReason, Role
from infopo_jax.users import UserFailed

TOO_LONG = 'Error: that was too long. Say it in fewer words.'
CUT = ' ...'  # stands where feedback was cut


class PromptTooLong(ValueError):
    """A prompt is longer than the limits allow: no fault of the environment's, and every member of its group has it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a dialogue."""

    max_turns: int
    max_tokens: int  # L, prompt included
    max_prompt_tokens: int
    max_action_tokens: int
    max_feedback_tokens: int
    max_bad_actions: int  # malformed actions in a row


class Dialogue:
    """One rollout in the making.

    ``ids``, ``roles``, ``turns`` and ``logps`` are the row so far. Of it, the first ``fed`` tokens are in the KV cache,
    ``pending`` are not yet. ``spoken`` says that the agent's action has ended and the environment is to answer.

    The row only grows, unless ``chat`` leaves old thoughts out (``Chat.append_only`` is False): then it is rendered
    anew before each turn and ``fed`` falls back to where it changed; what the cache holds behind that is overwritten.
    """

    def __init__(self, chat: Chat, limits: Limits, task: Any, *, group: int, member: int, seed: int):
        self.task, self.group, self.member = task, group, member
        self.ids: list[int] = []
        self.roles: list[int] = []
        self.turns: list[int] = []
        self.logps: list[float] = []
        self.rewards: list[float] = []
        self.errors: list[bool] = []
        self.fed = 0
        self.num_turns = 0
        self.outcome, self.success, self.valid = 0.0, False, True
        self.end_reason = EndReason.RUNNING
        self.error_text: str | None = None  # of the failure that made the rollout invalid
        self.spoken = False
        self.waiting = False  # for the environment
        self._chat, self._limits, self._seed = chat, limits, seed
        self._action: list[int] = []
        self._malformed = 0  # actions in a row
        self._opening: tuple[list[Message], list[dict] | None] = ([], None)
        self._said: list[list[int]] = []  # the actions as they were sampled
        self._heard: list[list[Message]] = []  # and what answered each
        self._env: TextEnv | None = None
        self._stopped = self._capped = False  # how the last action ended

    @property
    def ended(self) -> bool:
        """Whether the dialogue is over."""
        return self.end_reason != EndReason.RUNNING

    @property
    def pending(self) -> bool:
        """Whether tokens wait to be fed before the agent can go on; what it says is fed as it is sampled.

        A token that ended the action waits for its answer, so that both are fed in the same parts however late it is.
        """
        return not (self.ended or self.spoken or self.waiting) and self.fed < len(self.ids)

    @property
    def num_pending(self) -> int:
        """Tokens that wait to be fed."""
        return len(self.ids) - self.fed if self.pending else 0

    @property
    def budget(self) -> int:
        """Tokens that the agent may still say in this turn."""
        room = self._limits.max_tokens - len(self.ids)
        return max(0, min(self._limits.max_action_tokens - len(self._action), room))

    @property
    def drawn(self) -> int:
        """Tokens that the agent has sampled so far, also those that the row no longer shows.

        It never falls, as the length of a row does that is rendered anew: a key folded from it is used once.
        """
        return sum(map(len, self._said)) + len(self._action)

    @property
    def opened(self) -> bool:
        """Whether the environment has said what the task is."""
        return bool(self.ids)

    @property
    def must_ask(self) -> bool:
        """Whether the environment has to be asked for the opening, or for an answer to the action."""
        return not self.ended and not self.waiting and (self.spoken or not self.opened)

    @property
    def speaking(self) -> bool:
        """Whether the agent can go on."""
        return self.opened and not (self.ended or self.waiting or self.spoken or self.pending)

    def ask(self, make_env: Callable[[], TextEnv] | None = None) -> Callable[[], Any] | None:
        """Closes the action, if there is one, and returns the call whose value, or error, is to be handed back.

        The call touches the environment alone, so it may run in another thread. None: the answer is known already.
        """
        if not self.opened:
            self.waiting = True
            return _Opening(make_env, self._seed, {'task': self.task, 'member': self.member})
        self._stopped = self._action[-1] in self._chat.stop_ids
        text = tools_lib.canonical(self._chat.action_text(self._action), self._chat.tool_format)
        self._capped = not self._stopped and len(self._action) >= self._limits.max_action_tokens
        self._said.append(self._action)
        self._action, self.spoken = [], False
        self.num_turns += 1
        if self._stopped:
            self.waiting = True
            return functools.partial(self._env.step, text)
        self._take(
            lambda: self._answered([{'role': 'tool', 'content': TOO_LONG}], 0.0, False, False, {'is_error': True})
        )
        return None

    def receive(self, value: Any) -> None:
        """Takes what the call of ``ask`` returned; what breaks the contract of envs/text.py fails the rollout.

        Raises:
            PromptTooLong: the prompt is longer than allowed; the message names the task.
        """
        self.waiting = False
        if self.opened:
            self._take(lambda: self._answered(*contract.answer(value)))
        else:
            self._env, opening = value
            self._take(lambda: self._start(*contract.opening(opening)))

    def _take(self, take: Callable[[], None]) -> None:
        try:
            take()
        except PromptTooLong:
            raise
        except Exception as error:  # a chat template raises what it likes over messages that it cannot write
            self.fail(contract.complaint(error))

    def fail(self, error: Exception) -> None:
        """Notes that environment or user failed: the row is invalid, in no statistic and no loss."""
        if len(self.rewards) < self.num_turns:
            self._close_turn(0.0, False, False)
        self.waiting = False
        self.end_reason = EndReason.USER_ERROR if isinstance(error, UserFailed) else EndReason.ENV_ERROR
        self.outcome, self.success, self.valid = 0.0, False, False
        self.error_text = f'{type(error).__name__}: {error}'
        if not self.ids:
            self._append([self._chat.stop_id], [int(Role.PROMPT)], -1)  # a row is never empty

    def anew(self) -> 'Dialogue':
        """Returns the dialogue as it was before it began, to be tried again."""
        return Dialogue(self._chat, self._limits, self.task, group=self.group, member=self.member, seed=self._seed)

    def leave(self) -> Callable[[], Any] | None:
        """Lets go of the environment; returns the call that closes it, if it can be closed."""
        env, self._env = self._env, None
        return getattr(env, 'close', None)

    def _start(self, messages: list[Message], tools: list[dict] | None) -> None:
        self._opening = messages, tools
        ids = self._chat.prompt(messages, tools)
        limit = min(self._limits.max_prompt_tokens, self._limits.max_tokens - 1)
        if len(ids) > limit:
            raise PromptTooLong(
                f'the prompt of task {self.task!r} has {len(ids)} tokens, more than {limit}: raise '
                'config.rollout.max_prompt_tokens (and max_tokens), or shorten the policy and tools'
            )
        self._append(ids, [int(Role.PROMPT)] * len(ids), -1)

    def take(self, count: int) -> list[int]:
        """Hands over the next tokens to feed, at most ``count``."""
        if not self.pending:
            return []
        part = self.ids[self.fed : self.fed + count]
        self.fed += len(part)
        return part

    def hear(self, tokens: Sequence[int], logps: Sequence[float]) -> None:
        """Takes what the agent has just sampled; all but a token that ends the action are in the cache."""
        tokens = [int(t) for t in tokens]
        self._append(tokens, [int(Role.ACTION)] * len(tokens), self.num_turns, [float(x) for x in logps])
        self._action += tokens
        stopped = bool(tokens) and tokens[-1] in self._chat.stop_ids
        self.spoken = stopped or self.budget == 0
        self.fed = len(self.ids) - (1 if self.spoken and tokens else 0)

    def _answered(
        self, messages: list[Message], reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        is_error = bool(info.get('is_error', False))
        self._close_turn(reward, is_error, bool(info.get('malformed', is_error)))
        if terminated:
            self.success = bool(info.get('success', False))
            self.end_reason = EndReason.DONE
        elif not self._stopped and not self._capped:
            self.end_reason = EndReason.TOKEN_LIMIT
        elif self._malformed >= self._limits.max_bad_actions:
            self.end_reason = EndReason.BAD_ACTION
        elif truncated or self.num_turns >= self._limits.max_turns:
            self.end_reason = EndReason.TURN_LIMIT
        else:
            self._queue(messages, self._stopped)
        if self.ended:  # partial credit is kept, and turns cost what they cost, whatever the end
            if not (terminated or truncated) and hasattr(self._env, 'score'):
                self.outcome = contract.number('score(num_turns)', self._env.score(self.num_turns))
            else:
                self.outcome = contract.number("info['outcome']", info.get('outcome', sum(self.rewards)))

    def _queue(self, messages: list[Message], stopped: bool) -> None:
        messages = self._cut(messages)
        self._heard.append(messages)
        if not self._chat.append_only:
            self._render_anew()
            return
        ids, roles = self._chat.reply(messages, stopped=stopped)
        if len(self.ids) + len(ids) + 1 > self._limits.max_tokens:
            self.end_reason = EndReason.TOKEN_LIMIT
        else:
            self._append(ids, roles, self.num_turns - 1)

    def _render_anew(self) -> None:
        """Replaces the row by what the template writes now, old thoughts left out."""
        opening, tools = self._opening
        turns = list(zip(self._said, self._heard, strict=True))
        ids, roles, turn = self._chat.history(opening, turns, tools)
        if len(ids) + 1 > self._limits.max_tokens:
            self.end_reason = EndReason.TOKEN_LIMIT
            return
        same = next((i for i, (a, b) in enumerate(zip(self.ids, ids, strict=False)) if a != b), len(self.ids))
        self.fed = min(self.fed, same, len(ids) - 1)
        self.ids, self.roles, self.turns = ids, roles, turn
        self.logps = [0.0] * len(ids)  # none of them was sampled after what now stands in front of it

    def _cut(self, messages: list[Message]) -> list[Message]:
        """Cuts contents so that together they have at most max_feedback_tokens tokens, the marker included."""
        room, out = self._limits.max_feedback_tokens, []
        for message in messages:
            if len(self._chat.content(message)) > room:
                message = self._shortened(message, room)
            room -= len(self._chat.content(message))
            out.append(message)
        return out

    def _shortened(self, message: Message, room: int) -> Message:
        """Returns a message with the longest start of its content that has at most ``room`` tokens with the marker."""
        ids = self._chat.encode(message['content'])
        for size in range(min(room, len(ids)), -1, -1):
            text = self._chat.decode(ids[:size]).rstrip('\ufffd') + CUT  # half a character at the cut is dropped
            if len(self._chat.content(message | {'content': text})) <= room:
                return message | {'content': text}
        return message | {'content': ''}

    def _close_turn(self, reward: float, is_error: bool, is_malformed: bool) -> None:
        self.rewards.append(float(reward))
        self.errors.append(is_error)
        self._malformed = self._malformed + 1 if is_malformed else 0

    def _append(self, ids, roles, turn, logps=None) -> None:
        self.ids += ids
        self.roles += roles
        self.turns += [turn] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps


@dataclasses.dataclass(frozen=True)
class _Opening:
    """Makes an environment and resets it; one that fails at once, or comes too late, is closed again."""

    make_env: Callable[[], TextEnv]
    seed: int
    options: dict[str, Any]

    def __call__(self) -> tuple[TextEnv, Any]:
        env = self.make_env()
        try:
            return env, env.reset(seed=self.seed, options=self.options)
        except BaseException:
            _close(env)
            raise

    def drop(self, value: tuple[TextEnv, Any]) -> None:
        """Takes back what nobody waits for any more; see ``Workers.submit``."""
        _close(value[0])


def _close(env: TextEnv) -> None:
    getattr(env, 'close', lambda: None)()
