"""The letters, the roles of tokens, and the one data structure: padded turn tensors.

Letters, used in every file:

    P  prompts per step          T  turns                    V  vocabulary
    G  rollouts per prompt       L  trunk tokens per row     H  horizon (later actions a gain looks at)
    N  = P * G rollouts          B  branch tokens per row    A  target tokens per row

Row n belongs to group n // G. Turn t is the action a_t (the agent's tokens) and the feedback o_t that it drew out.

A trunk row, three turns long (``.`` is PAD)::

    token   <s> hi  <a> ask </a> <u> red </u> <a> ask </a> <u> two </u> <a> buy </a>  .   .
    role     P   P   P   A   A    T   F   T    T   A   A    T   F   T    T   A   A    -   -
    turn    -1  -1  -1   0   0    0   0   0    0   1   1    1   1   1    1   2   2   -1  -1

Markup before a_0 is PROMPT; markup between a_t and a_{t+1} is TEMPLATE of turn t; a sampled stop token is ACTION.
"""

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Role(enum.IntEnum):
    """What a trunk token is; stored as int8."""

    PAD = 0
    PROMPT = 1
    ACTION = 2
    FEEDBACK = 3
    TEMPLATE = 4


class EndReason(enum.IntEnum):
    """How a rollout ended; stored as int8. Truncation (a limit) is never success."""

    RUNNING = 0
    DONE = 1
    TURN_LIMIT = 2
    TOKEN_LIMIT = 3
    BAD_ACTION = 4
    ENV_ERROR = 5
    USER_ERROR = 6


def pytree_dataclass(cls):
    """Makes a frozen dataclass whose fields are all pytree children."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree_dataclass
class Turns:
    """A batch of finished rollouts as padded turn tensors.

    Rows are left-aligned: PAD stands at the end only, and the position of a token is its index. The tokens are the very
    ids that were sampled or fed; nothing is tokenized again.
    """

    tokens: Array  # [N, L] int32
    role: Array  # [N, L] int8, a Role
    turn: Array  # [N, L] int32, turn of ACTION, FEEDBACK and TEMPLATE tokens; -1 elsewhere
    sampled_logp: Array  # [N, L] float32, log-probability under the sampling distribution at ACTION tokens, 0 elsewhere
    turn_reward: Array  # [N, T] float32, environment reward per turn
    outcome: Array  # [N] float32, score of the rollout, partial credit kept
    success: Array  # [N] bool, the environment's own test; False unless it ended DONE
    valid: Array  # [N] bool, False where environment or user failed: in no statistic and no loss
    num_turns: Array  # [N] int32, actions taken
    end_reason: Array  # [N] int8, an EndReason
    turn_error: Array | None = None  # [N, T] bool, feedback that the environment marks as an error; None: none is

    @property
    def action_mask(self) -> Array:
        """[N, L] bool, True at the agent's own tokens."""
        return self.role == Role.ACTION

    @property
    def feedback_mask(self) -> Array:
        """[N, L] bool, True at feedback tokens."""
        return self.role == Role.FEEDBACK

    @property
    def real_mask(self) -> Array:
        """[N, L] bool, True at every token that is not PAD."""
        return self.role != Role.PAD


@pytree_dataclass
class Place:
    """Where tokens stand, as integers from which visibility is computed; see ``packing.visible``.

    A [N, S] mask of pairs is never stored: attention evaluates the rule block by block.
    """

    index: Array  # [N, S] int32, storage order inside the trunk or inside the branch block
    position: Array  # [N, S] int32, position for RoPE and sliding windows; -1 marks PAD, which is never a key
    branch: Array  # [N, S] int32, -1 for trunk tokens, else the turn whose feedback the branch masks
    limit: Array  # [N, S] int32, trunk tokens with index < limit are visible


@pytree_dataclass
class Signals:
    """Everything that an estimator may turn into credit; all arrays are without gradient."""

    turn: Array  # [N, L] int32
    action_mask: Array  # [N, L] bool
    outcome: Array  # [N] float32
    turn_reward: Array  # [N, T] float32
    valid: Array  # [N] bool
    num_turns: Array  # [N] int32
    gain: Array  # [N, T] float32, information gain credited to a_t; 0 where gain_mask is False
    gain_mask: Array  # [N, T] bool
    update: Array  # [] int32, updates done so far (decay schedules)


@pytree_dataclass
class Credit:
    """What an estimator returns: the advantage of every token, and which tokens the loss sees."""

    advantage: Array  # [N, L] float32, 0 outside loss_mask
    loss_mask: Array  # [N, L] bool
    metrics: dict[str, Any]  # scalars


def check_shape(name: str, array: Array, shape: tuple[int | None, ...], kind: str | None = None) -> None:
    """Checks rank, sizes and dtype kind of an argument of a public transform.

    Args:
        name: the argument's name, for the message.
        array: the array.
        shape: expected sizes; None matches any size.
        kind: 'f' float, 'i' integer, 'b' bool; None accepts any dtype.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    kinds = {'f': jnp.floating, 'i': jnp.integer, 'b': jnp.bool_}
    actual = jnp.shape(array)
    fits = len(actual) == len(shape) and all(e is None or e == a for e, a in zip(shape, actual, strict=True))
    if not fits:
        wanted = ', '.join('*' if e is None else str(e) for e in shape)
        raise ValueError(f'{name} must have shape [{wanted}], got {list(actual)}')
    dtype = jnp.result_type(array)
    if kind is not None and not jnp.issubdtype(dtype, kinds[kind]):
        raise ValueError(f'{name} must be {kinds[kind].__name__}, got {dtype}')
