"""Who answers in place of an environment's script, as a config describes him."""

import copy
from typing import Any

import jax
from flax import nnx

from infopo_jax import envs, users
from infopo_jax.lm import hf, hub
from infopo_jax.lm.chat import Chat

USER = 4  # what the run's key is folded with, beside those of build_state.py
PATIENCE = 0.9  # of rollout.call_seconds: he gives up before the engine does, whose environment would count as broken


def make_user(config: Any) -> dict[str, Any]:
    """Returns {'user': who answers}, one for all rollouts, or {} where environments answer by themselves.

    Raises:
        ValueError: the environment has nobody to be played, or nobody who could answer, or the user refuses a knob.
    """
    knobs = {name: value for name, value in config.user.items() if name != 'name'}
    name = config.user.name or ('scripted' if config.user.model is None else 'openai')
    if knobs['patience'] is None and 'patience' in users.knobs(name):
        knobs['patience'] = PATIENCE * config.rollout.call_seconds
    user = users.make(name, **knobs)
    if user is None:
        if config.env.name == 'colbench' and config.env.data is not None:  # the environment itself only warns
            raise ValueError(
                'the published data of colbench needs a language model as its user, since no script knows these '
                'functions: set config.user.name=openai and config.user.model, or leave data away'
            )
        return {}
    if 'user' not in envs.knobs(config.env.name):
        raise ValueError(
            f'config.user.name = {name!r}: environment {config.env.name!r} has nobody who could be played; '
            "set it to 'scripted'"
        )
    return {'user': user}


def bind_user(config: Any, user: Any, chat: Chat, rule: Any) -> None:
    """Gives a user who is a language model of ours his model: the policy's, or that of a checkpoint; others have none.

    Args:
        config: of the run.
        user: what ``make_user`` made, or None.
        chat: the agent's.
        rule: the run's ``update.UpdateRule``.

    Raises:
        ValueError: there is no such checkpoint, or it is not one that can be loaded.
    """
    if not hasattr(user, 'bind'):
        return
    settings = {
        'key': jax.random.fold_in(jax.random.key(config.seed), USER),
        'device': None if rule.mesh.size == 1 else rule.mesh.devices.flat[0],
        'cache_dtype': config.rollout.cache_dtype,
    }
    if user.path is None:
        graphdef = rule.base_graphdef if user.needs_reference and rule.base_graphdef is not None else rule.graphdef
        user.bind(_chat(config, copy.deepcopy(chat.tokenizer)), graphdef, **settings)
        return
    try:
        tokenizer, model = hub.load_tokenizer(user.path), hf.load(user.path, dtype=config.model.dtype)
    except ValueError as error:
        raise ValueError(f'config.user.path = {user.path!r}: {error}') from error
    graphdef, params = nnx.split(model)
    user.bind(_chat(config, tokenizer), graphdef, params=params, **settings)


def _chat(config, tokenizer) -> Chat:
    return Chat(tokenizer, **dict(config.chat.items()))
