"""Finished dialogues as a batch: padded to Turns, in one of few shapes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from infopo_jax import packing
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.types import Role, Turns

RUNGS = ((2 / 3, 0.3), (1.0, 0.3), (1.0, 1.0))  # share of L, and of the most branch and target tokens that it allows


@dataclasses.dataclass(frozen=True)
class Ladder:
    """At most four shapes that a batch can have: the rung fixes L, B and A together, so that little recompiles."""

    rungs: tuple[tuple[int, int, int], ...]  # (L, B, A), ascending

    @classmethod
    def of(cls, limits: Limits, *, num_placeholder: int, horizon: int | str) -> 'Ladder':
        """Returns RUNGS, and one that holds anything the limits allow.

        Branches and targets of most dialogues take up a quarter of what L would allow. RUNGS expect a message per
        answer; each message is a run of feedback with a placeholder of its own, so many short ones need more branch
        tokens: the last rung.
        """
        most = limits.max_tokens
        targets = min(most, limits.max_turns * limits.max_action_tokens)
        h = packing.num_horizons(horizon, limits.max_turns)
        branches = most * h + limits.max_turns * (num_placeholder + 1)
        sizes = []
        for length, share in RUNGS:
            wanted = (length * most, length * share * branches, length * share * targets)
            bounds = zip(wanted, (most, branches, targets), strict=True)
            sizes.append(tuple(min(x, math.ceil(want / 16) * 16) for want, x in bounds))
        runs = most // 2  # at most: markup or an action stands between two
        sizes.append((most, max(branches, most * h + runs * (num_placeholder - 1)), targets))
        return cls(tuple(dict.fromkeys(sizes)))

    def fit(self, turns: Turns, placeholder: Sequence[int], horizon: int | str) -> tuple[tuple[int, int], Turns]:
        """Returns (B, A) of the lowest rung that holds a concrete batch, and the batch cut to its L."""
        length = int(np.max(np.sum(turns.role != Role.PAD, axis=1)))
        branch, target = packing.bounds(turns, placeholder, horizon=horizon, multiple=1)
        for rung in self.rungs:
            if length <= rung[0] and branch <= rung[1] and target <= rung[2]:
                cut = {name: getattr(turns, name)[:, : rung[0]] for name in ('tokens', 'role', 'turn', 'sampled_logp')}
                return rung[1:], dataclasses.replace(turns, **cut)
        raise ValueError(f'a batch of L={length}, B={branch}, A={target} fits no rung of {self.rungs}')


def to_turns(dialogues: Sequence[Dialogue], length: int, num_turns: int) -> Turns:
    """Pads finished dialogues to Turns with L = length, T = num_turns."""
    n = len(dialogues)
    blank = {
        'tokens': np.zeros((n, length), np.int32),
        'role': np.zeros((n, length), np.int8),
        'turn': np.full((n, length), -1, np.int32),
        'sampled_logp': np.zeros((n, length), np.float32),
    }
    reward, error = np.zeros((n, num_turns), np.float32), np.zeros((n, num_turns), bool)
    for i, d in enumerate(dialogues):
        size = len(d.ids)
        values = {'tokens': d.ids, 'role': d.roles, 'turn': d.turns, 'sampled_logp': d.logps}
        for name, value in values.items():
            blank[name][i, :size] = value
        reward[i, : len(d.rewards)], error[i, : len(d.errors)] = d.rewards, d.errors
    return Turns(
        **blank,
        turn_reward=reward,
        outcome=np.array([d.outcome for d in dialogues], np.float32),
        success=np.array([d.success for d in dialogues]),
        valid=np.array([d.valid for d in dialogues]),
        num_turns=np.array([d.num_turns for d in dialogues], np.int32),
        end_reason=np.array([d.end_reason for d in dialogues], np.int8),
        turn_error=error,
    )
