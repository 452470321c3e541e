"""What holds of every batch of rollouts; see ``types.Turns``."""

import numpy as np

from infopo_jax.types import EndReason, Role, Turns


def check_turns(turns: Turns, *, stop_id: int, max_action: int) -> None:
    """Asserts that rows are left-aligned and whole, and that every field agrees with the others."""
    for n in range(len(turns.tokens)):
        real = np.asarray(turns.role[n]) != Role.PAD
        size, length = int(real.sum()), len(real)
        assert real[:size].all(), 'rows are left-aligned'
        assert (turns.tokens[n][size:] == 0).all() and (turns.turn[n][size:] == -1).all()
        action = turns.role[n] == Role.ACTION
        assert (turns.sampled_logp[n][~action] == 0).all() and (turns.sampled_logp[n][action] < 0).all()
        outside = np.isin(turns.role[n], [Role.PAD, Role.PROMPT])
        assert ((turns.turn[n] == -1) == outside).all()
        assert (np.diff(turns.turn[n][:size]) >= 0).all(), 'turns follow each other'
        assert turns.role[n][0] == Role.PROMPT and turns.role[n][size - 1] == Role.ACTION
        for t in range(int(turns.num_turns[n])):
            ids = turns.tokens[n][action & (turns.turn[n] == t)]
            assert len(ids) > 0 and stop_id not in ids[:-1]
            assert ids[-1] == stop_id or len(ids) == max_action or size == length
        assert turns.turn[n].max() == turns.num_turns[n] - 1
        assert (turns.turn_reward[n][turns.num_turns[n] :] == 0).all()
        assert not turns.turn_error[n][turns.num_turns[n] :].any()
        assert not turns.success[n] or turns.end_reason[n] == EndReason.DONE
        assert turns.end_reason[n] != EndReason.RUNNING
