"""Runs for a mesh of eight devices: tiny worlds to play and to learn, their configs, and how results are compared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from chatter import Chatter
from flax import nnx
from models import often_stopping
from talk import Colour

from infopo_jax import build, build_state, config as config_lib, loops, sharding
from infopo_jax.envs.array import Example


class Echo(Colour):
    """Answers whatever is said, with a reward that depends on it."""

    def step(self, text):
        info = {'is_error': len(text) % 2 == 1, 'success': True}
        return f'it is {self.goal} ' * (len(text) % 3), float(len(text)), len(text) % 5 == 2, False, info

    def corpus(self):
        return ['which colour', 'it is ', 'take ', 'nothing'] * 4

    def special_tokens(self):
        return ['red', 'blue']

    def example(self, rng):
        return [{'role': 'user', 'content': 'which colour'}], f'take {rng.choice(["red", "blue"])}'


class Asked(Echo):
    """Has a user answer whatever is said."""

    heard = None  # set by a test: {(nonce, text): answer}

    def __init__(self, user=None):
        super().__init__()
        self._user = user

    def reset(self, *, seed=0, options=None):
        self._nonce = f'{seed}/{options["member"]}'
        return super().reset(seed=seed, options=options)

    def step(self, text):
        answer = self._user.reply([{'role': 'user', 'content': text or 'take'}], nonce=self._nonce)
        Asked.heard[self._nonce, text] = answer
        return answer, *super().step(text)[1:]


class Taught(Chatter):
    """Has something to teach: to say a token of the prompt."""

    def example(self, key):
        tokens = jax.random.randint(key, (7,), 8, 20).at[4].set(4).at[6].set(self.stop_id)
        target = jnp.arange(7) >= 5
        return Example(tokens=tokens.at[5].set(tokens[0]), token_mask=jnp.ones((7,), bool), target_mask=target)


TINY = {
    'batch.prompts': 4, 'batch.group_size': 4, 'model.dim': 16, 'model.num_layers': 1, 'model.num_heads': 8,
    'model.num_kv_heads': 8, 'model.head_dim': 2, 'model.qk_norm': False, 'model.mlp_dim': 32,
    'model.tie_embeddings': False,
    'warmstart.batch': 16, 'eval.episodes': 16, 'log.rollouts': 2, 'optim.warmup_steps': 0, 'optim.lr': 1e-2,
    'optim.eps': 1e-2,  # where a gradient is next to nothing, Adam's step would be its sign
    'loss.kl_coef': 0.1,
}  # fmt: skip
KINDS = {
    'jitted': TINY | {'env.name': 'chatter'},
    'hosted': TINY | {
        'env.name': 'echo', 'env.kind': 'hosted', 'rollout.max_prompt_tokens': 20, 'rollout.max_tokens': 64,
        'rollout.max_action_tokens': 6, 'rollout.max_feedback_tokens': 12, 'rollout.slots': 8,
        'info.mask_errors': False,
    },
}  # fmt: skip
WORLDS = {'chatter': 'mesh_runs:Taught', 'echo': 'mesh_runs:Echo', 'asked': 'mesh_runs:Asked'}


def start(kind, mesh, **overrides):
    """Returns the loop of a run on a mesh and a state whose policy is no longer its reference."""
    config = config_lib.base_config()
    sizes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), mesh, strict=True))
    config.update_from_flattened_dict(KINDS[kind] | sizes | overrides)
    config_lib.validate(config)
    loop, model_config = build.make_loop(config)
    state = build_state.make_state(loop, model_config, loops.seed_keys(config.seed, 1))
    params = jax.tree.map(lambda leaf: 1.5 * jnp.asarray(leaf), host(state.params))
    if kind == 'hosted':
        params = nnx.split(often_stopping(nnx.merge(loop.rule.graphdef, params), loop.chat.stop_id, 4.0))[1]
    return loop, dataclasses.replace(state, params=sharding.by_name(params, loop.rule.mesh))


def host(tree):
    """Returns copies as numpy arrays, of keys their words."""

    def of(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(of, tree)


def assert_close(a, b, least=1e-3):
    """Compares leaf by leaf to 1e-5 of the leaf's largest number, or of ``least``; of Adam's squares the roots."""
    a, b = (jax.tree_util.tree_flatten_with_path(host(tree))[0] for tree in (a, b))
    for (path, x), (_, y) in zip(a, b, strict=True):
        name = jax.tree_util.keystr(path)
        x, y = (np.sqrt(x), np.sqrt(y)) if '.nu[' in name else (x, y)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(least, np.abs(y).max()), err_msg=name)


def assert_laid_out(tree, mesh):
    """Checks the pieces that devices hold against the rules, and that all that is large is in pieces."""
    wanted = jax.tree.leaves(sharding.shardings(tree, mesh))
    for leaf, place in zip(jax.tree.leaves(tree), wanted, strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
        assert {piece.data.shape for piece in leaf.addressable_shards} == {place.shard_shape(leaf.shape)}
    kernel = tree.params['blocks']['up']['kernel'][...]
    moment = tree.opt_state[1][0].mu['blocks']['up']['kernel'][...]
    for leaf in (kernel, moment):
        share = mesh.shape['fsdp'] * mesh.shape['tensor']
        assert leaf.addressable_shards[0].data.size == leaf.size // share
