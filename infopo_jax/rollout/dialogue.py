"""One dialogue of the agent with a text environment, as ids: what was said, what is still to be fed, how it ended."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from infopo_jax.envs.text import Message, Observation, TextEnv
from infopo_jax.lm.chat import Chat
from infopo_jax.types import EndReason, Role

TOO_LONG = 'Error: that was too long. Say it in fewer words.'
CUT = ' ...'  # stands where feedback was cut


class UserFailed(RuntimeError):
    """Raised by an environment whose user (a person, an endpoint, a model) gave no answer."""


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
        self._chat, self._limits, self._seed = chat, limits, seed
        self._action: list[int] = []
        self._bad = 0
        self._env: TextEnv | None = None

    @property
    def ended(self) -> bool:
        """Whether the dialogue is over."""
        return self.end_reason != EndReason.RUNNING

    @property
    def pending(self) -> bool:
        """Whether tokens wait to be fed before the agent can go on; what it says is fed as it is sampled."""
        return not self.ended and not self.spoken and self.fed < len(self.ids)

    @property
    def budget(self) -> int:
        """Tokens that the agent may still say in this turn."""
        room = self._limits.max_tokens - len(self.ids)
        return max(0, min(self._limits.max_action_tokens - len(self._action), room))

    def start(self, env: TextEnv) -> None:
        """Resets the environment and takes its opening as the prompt.

        Raises:
            ValueError: the prompt is longer than allowed; the message names the task.
        """
        self._env = env
        try:
            observation, info = env.reset(seed=self._seed, options={'task': self.task})
        except Exception as error:  # whatever a foreign environment raises must not end the run
            self._fail(error)
            ids = [self._chat.stop_id]  # a row is never empty
        else:
            messages = _messages(observation)
            ids = self._chat.prompt(messages, info.get('tools'))
        limit = min(self._limits.max_prompt_tokens, self._limits.max_tokens - 1)
        if len(ids) > limit:
            raise ValueError(
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
        stopped = bool(tokens) and tokens[-1] == self._chat.stop_id
        self.spoken = stopped or self.budget == 0
        self.fed = len(self.ids) - (1 if self.spoken and tokens else 0)

    def step(self) -> None:
        """Lets the environment answer the action, and queues the answer to be fed."""
        stopped = self._action[-1] == self._chat.stop_id
        text = self._chat.action_text(self._action)
        capped = not stopped and len(self._action) >= self._limits.max_action_tokens
        self._action, self.spoken = [], False
        self.num_turns += 1
        reward, terminated, truncated, info = 0.0, False, False, {'is_error': True}
        if stopped:
            try:
                observation, reward, terminated, truncated, info = self._env.step(text)
            except Exception as error:  # see start
                self._close_turn(0.0, False)
                self._fail(error)
                return
            messages = _messages(observation)
        else:
            messages = [{'role': 'tool', 'content': TOO_LONG}]
        self._close_turn(reward, bool(info.get('is_error', False)))
        if terminated:
            self.success = bool(info.get('success', False))
            self.end_reason = EndReason.DONE
        elif not stopped and not capped:
            self.end_reason = EndReason.TOKEN_LIMIT
        elif self._bad >= self._limits.max_bad_actions:
            self.end_reason = EndReason.BAD_ACTION
        elif truncated or self.num_turns >= self._limits.max_turns:
            self.end_reason = EndReason.TURN_LIMIT
        else:
            self._queue(messages, stopped)
        if self.ended:  # partial credit is kept, whatever the end
            self.outcome = float(info.get('outcome', sum(self.rewards)))

    def _queue(self, messages: list[Message], stopped: bool) -> None:
        ids, roles = self._chat.reply(self._cut(messages), stopped=stopped)
        if len(self.ids) + len(ids) + 1 > self._limits.max_tokens:
            self.end_reason = EndReason.TOKEN_LIMIT
        else:
            self._append(ids, roles, self.num_turns - 1)

    def _cut(self, messages: list[Message]) -> list[Message]:
        """Cuts contents so that together they have at most max_feedback_tokens tokens, the marker included."""
        room, out = self._limits.max_feedback_tokens, []
        for message in messages:
            ids = self._chat.encode(message['content'])
            if len(ids) > room:
                message = message | {'content': self._shortened(ids, room)}
                ids = self._chat.encode(message['content'])
            room -= len(ids)
            out.append(message)
        return out

    def _shortened(self, ids: list[int], room: int) -> str:
        """Returns the longest start of a text that has at most ``room`` tokens with the marker; '' if none has."""
        for size in range(room, -1, -1):
            text = self._chat.decode(ids[:size]).rstrip('\ufffd') + CUT  # half a character at the cut is dropped
            if len(self._chat.encode(text)) <= room:
                return text
        return ''

    def _close_turn(self, reward: float, is_error: bool) -> None:
        self.rewards.append(float(reward))
        self.errors.append(is_error)
        self._bad = self._bad + 1 if is_error else 0

    def _fail(self, error: Exception) -> None:
        failed_user = isinstance(error, UserFailed)
        self.end_reason = EndReason.USER_ERROR if failed_user else EndReason.ENV_ERROR
        self.valid = False
        self.error_text = f'{type(error).__name__}: {error}'

    def _append(self, ids, roles, turn, logps=None) -> None:
        self.ids += ids
        self.roles += roles
        self.turns += [turn] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps


def _messages(observation: Observation) -> list[Message]:
    """Returns an observation as messages; a bare string is the user's."""
    return [{'role': 'user', 'content': observation}] if isinstance(observation, str) else list(observation)
