"""The picture in packing's docstring is the golden; the rule is checked pair by pair."""

import re

import builders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax import packing
from infopo_jax.types import Place, Role

LETTERS = {'p': 11, 'a': 20, '|': 7, 'o': 30, '~': 40}
ROLES = {'p': Role.PROMPT, 'a': Role.ACTION, '|': Role.TEMPLATE, 'o': Role.FEEDBACK}


def picture():
    """Reads the docstring's drawing: {'trunk': {line: values}, 'branch': {...}}."""
    drawing, block = {}, None
    for line in packing.__doc__.splitlines():
        match = re.match(r'    (trunk|branch| {5,6})\s+(token|index|position|limit|branch) +(.*)', line)
        if match:
            block = match[1].strip() or block
            drawing.setdefault(block, {})[match[2]] = match[3].split()
    return drawing


def token_id(word):
    return LETTERS[word[0]] + (int(word[1]) if len(word) > 1 else 0)


def picture_turns():
    words, row, turn = picture()['trunk']['token'], [], -1
    for word in words:
        turn = int(word[1]) if len(word) > 1 else turn
        row.append((token_id(word), ROLES[word[0]], turn if word[0] != 'p' else -1))
    return builders.turns_of([row])


def test_pack_draws_the_docstring_picture():
    drawn, turns = picture(), picture_turns()
    packed = packing.pack(turns, jnp.array([40]), branch_len=9)
    for name in ('index', 'position', 'limit'):
        np.testing.assert_array_equal(getattr(packed.trunk, name)[0], [int(x) for x in drawn['trunk'][name]])
        np.testing.assert_array_equal(getattr(packed.branch, name)[0], [int(x) for x in drawn['branch'][name]])
    np.testing.assert_array_equal(packed.branch.branch[0], [int(x) for x in drawn['branch']['branch']])
    np.testing.assert_array_equal(packed.branch_tokens[0], [token_id(w) for w in drawn['branch']['token']])
    # the targets a0, a1 a1, a2; a1 is predicted by the markup before it, its second token by its first
    np.testing.assert_array_equal(packed.target_index[0, :4], [2, 7, 8, 12])
    np.testing.assert_array_equal(packed.branch_mask[0, 0, :4], [False, True, True, True])
    length = turns.tokens.shape[1]
    np.testing.assert_array_equal(packed.branch_source[0, 0, 1:4], [length + 2, length + 3, length + 7])


def test_visible_follows_the_rule_for_every_pair():
    packed = packing.pack(picture_turns(), jnp.array([40]), branch_len=11)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), packed.trunk, packed.branch)
    seen = np.asarray(packing.visible(both, both))[0]
    length = packed.trunk.index.shape[1]
    for q in range(seen.shape[0]):
        for k in range(seen.shape[1]):
            if q < length:
                expected = k <= q  # the trunk is plainly causal and never sees a branch
            elif q - length < 9:
                own = 0 if q - length < 5 else 1
                start = length if own == 0 else length + 5
                expected = (k < (3, 9)[own]) if k < length else start <= k <= q
            else:
                continue  # unused slots
            assert seen[q, k] == expected, (q, k)


def test_visible_never_shows_padding():
    place = Place(*(jnp.array([x]) for x in ([0, 1, 2], [0, 1, -1], [-1, -1, -1], [3, 3, 3])))
    assert not np.asarray(packing.visible(place, place))[0, :, 2].any()


def test_pack_under_jit_equals_eager():
    turns = builders.random_turns(0)
    placeholder = jnp.array([40, 41])
    b, a = packing.bounds(turns, placeholder)
    eager = packing.pack(turns, placeholder)
    jitted = jax.jit(lambda t: packing.pack(t, placeholder, branch_len=b, target_len=a))(turns)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)


def test_pack_ignores_what_stands_in_padding():
    rows = [builders.random_row(np.random.default_rng(s), num_turns=t) for s, t in ((0, 4), (1, 2))]
    clean = packing.pack(builders.turns_of(rows, length=60), jnp.array([40]))
    dirty = packing.pack(builders.turns_of(rows, length=60, pad_garbage=33), jnp.array([40]))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.parametrize('horizon', [1, 2, 'all'])
def test_bounds_are_what_is_needed(horizon):
    turns = builders.random_turns(3)
    need = packing.bounds(turns, [40, 41], horizon=horizon, multiple=1)
    packed = packing.pack(turns, jnp.array([40, 41]), horizon=horizon, branch_len=need[0], target_len=need[1])
    assert int(packed.branch_used.max()) == need[0]
    for name, kwargs in (
        ('branch_len', dict(branch_len=need[0] - 1, target_len=need[1])),
        ('target_len', dict(branch_len=need[0], target_len=need[1] - 1)),
    ):
        with pytest.raises(ValueError, match=f'{name}=.* needs {need[name == "target_len"]}'):
            packing.pack(turns, jnp.array([40, 41]), horizon=horizon, **kwargs)


def test_pack_asks_for_bounds_under_jit():
    with pytest.raises(ValueError, match='branch_len and target_len'):
        jax.jit(lambda t: packing.pack(t, jnp.array([40])))(builders.random_turns(0))


def test_num_horizons_rejects_nonsense():
    with pytest.raises(ValueError, match='horizon'):
        packing.num_horizons(-1, 4)
