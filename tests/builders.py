"""Small rollouts for tests, built by hand or at random."""

import numpy as np

from infopo_jax.types import EndReason, Role, Turns

P, A, F, M = Role.PROMPT, Role.ACTION, Role.FEEDBACK, Role.TEMPLATE


def random_row(rng, *, num_turns, vocab=50, prompt=(2, 6), action=(1, 5), feedback=(1, 6), two_runs=0.3, silent=0.1):
    """Returns one row as a list of (token, role, turn); some turns have two feedback runs, some none."""
    row = []

    def put(count, role, turn):
        row.extend((int(rng.integers(3, vocab)), role, turn) for _ in range(count))

    put(int(rng.integers(*prompt)), P, -1)
    for t in range(num_turns):
        put(int(rng.integers(*action)), A, t)
        if t == num_turns - 1:
            break
        put(int(rng.integers(0, 3)), M, t)
        if rng.random() > silent:
            put(int(rng.integers(*feedback)), F, t)
            if rng.random() < two_runs:
                put(int(rng.integers(1, 3)), M, t)
                put(int(rng.integers(*feedback)), F, t)
        put(int(rng.integers(0, 3)), M, t)
    return row


def turns_of(rows, *, max_turns=None, length=None, pad_garbage=None):
    """Pads rows of (token, role, turn) to Turns; ``pad_garbage`` fills the padding's tokens."""
    n = len(rows)
    length = length or max(len(r) for r in rows)
    num_turns = np.array([1 + max((t for _, role, t in r if role == A), default=-1) for r in rows], np.int32)
    t = max_turns or int(num_turns.max())
    tokens, role = np.zeros((n, length), np.int32), np.zeros((n, length), np.int8)
    turn = np.full((n, length), -1, np.int32)
    if pad_garbage is not None:
        tokens[:] = pad_garbage
    for i, r in enumerate(rows):
        tokens[i, : len(r)], role[i, : len(r)], turn[i, : len(r)] = zip(*r, strict=True)
    return Turns(
        tokens=tokens,
        role=role,
        turn=turn,
        sampled_logp=np.zeros((n, length), np.float32),
        turn_reward=np.zeros((n, t), np.float32),
        outcome=np.zeros((n,), np.float32),
        success=np.zeros((n,), bool),
        valid=np.ones((n,), bool),
        num_turns=num_turns,
        end_reason=np.full((n,), EndReason.DONE, np.int8),
        turn_error=np.zeros((n, t), bool),
    )


def random_turns(seed, *, num_turns=(5, 3, 1, 4), **kwargs):
    """Returns Turns with rows of different lengths and turn counts."""
    rng = np.random.default_rng(seed)
    return turns_of([random_row(rng, num_turns=t, **kwargs) for t in num_turns])
