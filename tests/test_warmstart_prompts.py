"""The warm start's examples of every environment that teaches: the prompts and the layout of calls are a rollout's."""

import random

import pytest
from chat_templates import tokenizer_of
from dialogues import ROOMY, begin

from infopo_jax import envs, warmstart
from infopo_jax.envs.tools import canonical
from infopo_jax.lm.chat import Chat

TEACHERS = {
    'retail': ('retail', {}),
    'retail, full policy': ('retail', {'brief': False, 'level': 3}),
    'usergym': ('usergym', {'gym': 'intention'}),
    'usergym, travel': ('usergym', {'gym': 'travel'}),
    'colbench': ('colbench', {}),
    'webshop': ('webshop', {'num_hidden': 1}),
    'sokoban_text': ('sokoban_text', {'level': 1}),
    'gymnasium': ('gymnasium', {'gym': 'test_gymnasium_env:Door', 'actions': 'turn=turn {way}', 'prompt': 'Open it.'}),
}


class Remembers:
    """Passes on what an environment says, and keeps the examples that were drawn."""

    def __init__(self, env):
        self.drawn, self._env = [], env

    def __getattr__(self, name):
        return getattr(self._env, name)

    def example(self, rng):
        self.drawn.append(self._env.example(rng))
        return self.drawn[-1]


class Opens:
    """Opens as an environment does, but for the messages, which are given."""

    def __init__(self, env, messages):
        self._env, self._messages = env, messages

    def reset(self, **kwargs):
        return self._messages, self._env.reset(**kwargs)[1]


def opening(messages):
    turns = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
    return messages[: turns[0] if turns else len(messages)]


@pytest.mark.parametrize('shape', ['tiny', 'chatml', 'llama3', 'mistral'])
@pytest.mark.parametrize('name', TEACHERS)
def test_examples_have_the_prompt_of_a_rollout_and_calls_of_its_layout(name, shape):
    kind, knobs = TEACHERS[name]
    chat, env = Chat(tokenizer_of(shape)), Remembers(envs.make(kind, **knobs))
    task = random.Random(0).choice(env.tasks('train'))
    settings = {'batch': 6, 'max_len': 20_000, 'max_targets': 2000, 'pool': 1}
    batch = next(warmstart.text_batches(env, chat, seed=0, **settings))
    rows = [list(map(int, row[real])) for row, real in zip(batch.tokens, batch.token_mask, strict=True)]
    asked = [row[target] for row, target in zip(batch.tokens, batch.target_mask, strict=True)]
    assert len(env.drawn) == len(rows)
    limits = ROOMY | {'max_prompt_tokens': 20_000, 'max_tokens': 20_001}
    prompts = [begin(task, env=Opens(env, opening(drawn)), chat=chat, **limits).ids for drawn, _ in env.drawn]
    for prompt in prompts:
        assert any(row[: len(prompt)] == prompt for row in rows)
    for row in rows:
        assert any(row[: len(prompt)] == prompt for prompt in prompts)
    heard = [canonical(chat.action_text(ids), chat.tool_format) for ids in asked]
    assert sorted(heard) == sorted(target for _, target in env.drawn)
    layouts = {'llama3': '"parameters"', 'mistral': '[TOOL_CALLS]'}
    if any('<tool_call>' in text for text in heard):
        mark = layouts.get(chat.tool_format, '<tool_call>')
        assert any(mark in chat.action_text(ids) for ids in asked)
        assert mark == '<tool_call>' or not any('<tool_call>' in chat.action_text(ids) for ids in asked)
