"""Sample rollouts as plain rows for rollouts.jsonl, which the report's inspector shows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infopo_jax.types import EndReason, Role, Turns


def sample_rows(
    turns: Turns,
    token_gain: np.ndarray | None,
    gain: np.ndarray,
    gain_mask: np.ndarray,
    advantage: np.ndarray,
    *,
    decode: Callable[[Sequence[int]], str],
    group_size: int,
    phase: str,
) -> list[dict[str, Any]]:
    """Describes rollouts turn by turn.

    Args:
        turns: concrete rows.
        token_gain: [N, L] nats, horizon 1: what the feedback before an action did to each of its tokens; None where the
            run computes no gain.
        gain: [N, T]. gain_mask: [N, T] bool. advantage: [N, L].
        decode: ids -> text.
        group_size: G.
        phase: 'train' or 'eval'.

    Returns:
        One dict per row: prompt, outcome, success, end, and for each turn its text, ids, tokens, log_ratio, feedback,
        gain, advantage, reward and is_error.
    """
    turns = _to_numpy(turns)
    rows = []
    for n in range(turns.tokens.shape[0]):
        row = {
            'phase': phase,
            'index': n,
            'group': n // group_size,
            'prompt': decode(turns.tokens[n][turns.role[n] == Role.PROMPT]),
            'turns': [],
            'outcome': float(turns.outcome[n]),
            'success': bool(turns.success[n]),
            'end': EndReason(int(turns.end_reason[n])).name,
        }
        for t in range(int(turns.num_turns[n])):
            of_turn = turns.turn[n] == t
            action = np.flatnonzero(of_turn & (turns.role[n] == Role.ACTION))
            feedback = turns.tokens[n][of_turn & (turns.role[n] == Role.FEEDBACK)]
            ids = turns.tokens[n][action]
            row['turns'].append({
                'action': decode(ids),
                'tokens': [decode([i]) for i in ids],
                'ids': ids.tolist(),
                'log_ratio': None if token_gain is None or t == 0 else token_gain[n, action].tolist(),
                'feedback': decode(feedback),
                'is_error': bool(turns.turn_error[n, t]) if turns.turn_error is not None else False,
                'gain': float(gain[n, t]) if gain_mask[n, t] else None,
                'advantage': float(advantage[n, action[0]]) if len(action) else None,
                'reward': float(turns.turn_reward[n, t]),
            })  # fmt: skip
        rows.append(row)
    return rows


def _to_numpy(turns: Turns) -> Turns:
    fields = {name: np.asarray(value) for name, value in vars(turns).items() if value is not None}
    return Turns(**fields)
