"""The trunk, the masked-feedback branches beside it, and the rule of who sees whom.

The gain of turn t compares the action that followed, a_{t+1}, against the same history with the feedback o_t replaced
by a placeholder. All turns of a row are laid out for one forward pass: the trunk is the row as it is; beside it stands
a block of branches, one per turn, whose tokens read the trunk up to the end of a_t and their own branch.

Three turns, placeholder ``~``, markup ``|`` (a digit is the token's turn)::

    trunk    token      p  p  a0 |  o0 o0 |  a1 a1 |  o1 |  a2
             index      0  1  2  3  4  5  6  7  8  9  10 11 12
             position   0  1  2  3  4  5  6  7  8  9  10 11 12
             limit      1  2  3  4  5  6  7  8  9  10 11 12 13

    branch   token      |  ~  |  a1 a1 |  ~  |  a2
             index      0  1  2  3  4  5  6  7  8
             branch     0  0  0  0  0  1  1  1  1
             position   3  4  5  6  7  9  10 11 12
             limit      3  3  3  3  3  9  9  9  9

Positions continue from the prefix, as if the text had been rendered with the placeholder. Each run of feedback becomes
one placeholder of its own length; markup stays. With a horizon h the branch of turn t goes on to a_{t+h}, later
feedback copied.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infopo_jax.types import Place, Role, Turns, check_shape, pytree_dataclass


@pytree_dataclass
class Packed:
    """Where every token of a paired pass stands, and which states predict its targets."""

    trunk: Place  # [N, L]
    branch_tokens: jax.Array  # [N, B] int32
    branch: Place  # [N, B]
    target_index: jax.Array  # [N, A] int32, trunk index of the a-th ACTION token; 0 where target_mask is False
    target_mask: jax.Array  # [N, A] bool
    branch_source: jax.Array  # [N, H, A] int32, state (0..L-1 trunk, L.. branches) predicting it with o_{turn-h} masked
    branch_mask: jax.Array  # [N, H, A] bool, False where that counterfactual does not exist
    target_slot: jax.Array  # [N, L] int32, a of the ACTION token at a trunk index; 0 elsewhere
    branch_used: jax.Array  # [N] int32, branch tokens that the row needs; more than B is an overflow


def visible(query: Place, key: Place) -> jax.Array:
    """Returns [N, S, K] bool: which keys each query sees.

    A trunk key is seen where its index lies under the query's limit; a branch key where it belongs to the query's own
    branch and stands at or before it. PAD (position -1) is never a key.
    """
    q = jax.tree.map(lambda a: a[:, :, None], query)
    k = jax.tree.map(lambda a: a[:, None, :], key)
    in_trunk = (k.branch < 0) & (k.index < q.limit)
    in_branch = (k.branch >= 0) & (k.branch == q.branch) & (k.index <= q.index)
    return (k.position >= 0) & (in_trunk | in_branch)


def num_horizons(horizon: int | str, num_turns: int) -> int:
    """Returns H for a horizon: a count of later actions, or 'all' (also 0)."""
    if horizon == 'all' or horizon == 0:
        return max(1, num_turns - 1)
    if not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon must be 'all' or an integer of at least 1, got {horizon!r}")
    return min(horizon, max(1, num_turns - 1))


def bounds(turns: Turns, placeholder, *, horizon: int | str = 1, multiple: int = 16) -> tuple[int, int]:
    """Returns the smallest (B, A) that hold a concrete batch, rounded up to a multiple (fewer shapes to compile)."""
    num_turns = turns.turn_reward.shape[1]
    h = num_horizons(horizon, num_turns)
    used = _branch_used(turns.role, turns.turn, num_turns=num_turns, num_placeholder=len(placeholder), h=h)
    targets = np.sum(np.asarray(turns.role) == Role.ACTION, axis=1)
    return tuple(int(-(-max(1, np.max(np.asarray(x))) // multiple) * multiple) for x in (used, targets))


def pack(
    turns: Turns,
    placeholder: jax.Array,
    *,
    horizon: int | str = 1,
    branch_len: int | None = None,
    target_len: int | None = None,
) -> Packed:
    """Lays out trunk and branches of a batch.

    Args:
        turns: the batch; only tokens, role and turn are read.
        placeholder: [K] int32 ids shown in place of each run of feedback; K may be 0.
        horizon: later actions that a branch covers; 'all' (or 0) covers every one.
        branch_len: B; None takes the smallest that holds a concrete batch.
        target_len: A; None takes the smallest that holds a concrete batch.

    Raises:
        ValueError: B or A is too small for a concrete batch (named with the size needed), or missing under jit. Inside
            jit an overflow cannot raise: ``branch_used`` tells, and ``score`` turns such a row's gain into NaN.
    """
    placeholder = jnp.asarray(placeholder, jnp.int32)
    check_shape('placeholder', placeholder, (None,), 'i')
    check_shape('turns.role', turns.role, jnp.shape(turns.tokens), 'i')
    check_shape('turns.turn', turns.turn, jnp.shape(turns.tokens), 'i')
    num_turns = turns.turn_reward.shape[1]
    if isinstance(turns.role, jax.core.Tracer):
        if branch_len is None or target_len is None:
            raise ValueError(
                'pack needs branch_len and target_len under jit; packing.bounds finds them for a concrete batch'
            )
    else:
        need = bounds(turns, placeholder, horizon=horizon, multiple=1)
        fits = bounds(turns, placeholder, horizon=horizon)
        branch_len = fits[0] if branch_len is None else branch_len
        target_len = fits[1] if target_len is None else target_len
        for name, size, least in (('branch_len', branch_len, need[0]), ('target_len', target_len, need[1])):
            if size < least:
                raise ValueError(f'{name}={size} is too small for this batch: it needs {least}')
    h = num_horizons(horizon, num_turns)
    sizes = dict(num_turns=num_turns, h=h, branch_len=branch_len, target_len=target_len)
    return _pack_rows(turns.tokens, turns.role, turns.turn, placeholder, **sizes)


@functools.partial(jax.jit, static_argnames=('num_turns', 'num_placeholder', 'h'))
def _branch_used(role, turn, **sizes):
    """Returns [N] branch tokens that each row needs."""
    return jax.vmap(functools.partial(_layout, **sizes))(role, turn)['ends'][:, -1]


@functools.partial(jax.jit, static_argnames=('num_turns', 'h', 'branch_len', 'target_len'))
def _pack_rows(tokens, role, turn, placeholder, **sizes):
    return jax.vmap(functools.partial(_pack_row, placeholder=placeholder, **sizes))(tokens, role, turn)


def _layout(role, turn, *, num_turns, num_placeholder, h):
    """Counts, for one row, how many branch slots each trunk token fills in each branch.

    The entries run over the row's tokens once (horizon 1: a token is in one branch at most) or once per branch.
    """
    length = role.shape[0]
    index = jnp.arange(length, dtype=jnp.int32)
    action, feedback = role == Role.ACTION, role == Role.FEEDBACK
    slot = jnp.where(action, turn, num_turns)
    end = jnp.full((num_turns,), -1, jnp.int32).at[slot].max(index, mode='drop')  # last token of a_t
    is_end = action & (index == end[jnp.clip(turn, 0, num_turns - 1)])
    segment = jnp.cumsum(is_end, dtype=jnp.int32) - is_end  # token lies in (end of a_{s-1}, end of a_s]
    run_start = feedback & ~jnp.concatenate([jnp.zeros((1,), bool), feedback[:-1]])
    informs = jnp.zeros((num_turns,), bool).at[jnp.where(feedback, segment, num_turns)].max(True, mode='drop')
    informs = jnp.concatenate([(informs & (end >= 0))[1:], jnp.zeros((1,), bool)])  # of o_t, with an action after it

    if h == 1:
        branch, source = segment - 1, index
    else:
        branch = jnp.repeat(jnp.arange(num_turns, dtype=jnp.int32), length)
        source = jnp.tile(index, num_turns)
    s = segment[source]
    inside = (s > branch) & (s <= branch + h) & (branch >= 0) & (s < num_turns)
    inside &= (end[jnp.clip(s, 0, num_turns - 1)] >= 0) & informs[jnp.clip(branch, 0, num_turns - 1)]
    masked = feedback[source] & (s == branch + 1)
    count = jnp.where(masked, num_placeholder * run_start[source], 1) * inside
    ends = jnp.cumsum(count, dtype=jnp.int32)
    return dict(end=end, branch=branch, source=source, masked=masked, count=count, ends=ends)


def _pack_row(tokens, role, turn, *, placeholder, num_turns, h, branch_len, target_len):
    length, num_placeholder = tokens.shape[0], placeholder.shape[0]
    lay = _layout(role, turn, num_turns=num_turns, num_placeholder=num_placeholder, h=h)
    starts, used = lay['ends'] - lay['count'], lay['ends'][-1]

    # Branch tokens: slot j shows the entry in whose span it lies.
    slot = jnp.arange(branch_len, dtype=jnp.int32)
    real = slot < used
    entry = jnp.minimum(jnp.searchsorted(lay['ends'], slot, side='right').astype(jnp.int32), lay['ends'].shape[0] - 1)
    shown = jnp.concatenate([placeholder, jnp.zeros((1,), jnp.int32)])
    shown = shown[jnp.clip(slot - starts[entry], 0, num_placeholder)]
    branch_tokens = jnp.where(real, jnp.where(lay['masked'][entry], shown, tokens[lay['source'][entry]]), 0)
    branch = jnp.where(real, lay['branch'][entry], num_turns)
    first = jnp.searchsorted(branch, jnp.arange(num_turns), side='left').astype(jnp.int32)  # first slot of each branch
    limit = lay['end'][jnp.clip(branch, 0, num_turns - 1)] + 1
    position = limit + slot - first[jnp.clip(branch, 0, num_turns - 1)]

    # Targets: the row's ACTION tokens, and for each horizon the state that predicts them in the branch.
    action = role == Role.ACTION
    ordinal = jnp.cumsum(action, dtype=jnp.int32)
    a = jnp.arange(target_len, dtype=jnp.int32)
    target_mask = a < ordinal[-1]
    target = jnp.where(target_mask, jnp.searchsorted(ordinal, a + 1, side='left').astype(jnp.int32), 0)
    of_turn = turn[target][None] - 1 - jnp.arange(h, dtype=jnp.int32)[:, None]  # [H, A] turn whose feedback is masked
    t = jnp.clip(of_turn, 0, num_turns - 1)
    at = target[None] if h == 1 else t * length + target[None]
    at = jnp.broadcast_to(at, of_turn.shape)
    before = jnp.where(starts[at] > first[t], length + starts[at] - 1, lay['end'][t])
    branch_mask = target_mask[None] & (of_turn >= 0) & (lay['count'][at] > 0)

    real_mask = role != Role.PAD
    index = jnp.arange(length, dtype=jnp.int32)
    return Packed(
        trunk=Place(index, jnp.where(real_mask, index, -1), jnp.full((length,), -1, jnp.int32), index + 1),
        branch_tokens=branch_tokens,
        branch=Place(slot, jnp.where(real, position, -1), branch, jnp.where(real, limit, 0)),
        target_index=target,
        target_mask=target_mask,
        branch_source=jnp.where(branch_mask, before, 0),
        branch_mask=branch_mask,
        target_slot=jnp.where(action, jnp.minimum(ordinal - 1, target_len - 1), 0),
        branch_used=used,
    )
