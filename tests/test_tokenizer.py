"""Tests of the tokenizer, on small texts and on the retail world."""

import random

import pytest
from hypothesis import given, strategies as st
from transformers import AutoTokenizer

from infopo_jax.envs.retail import Retail
from infopo_jax.envs.retail.expert import act
from infopo_jax.lm.tokenizer import CHAT_TOKENS, train_tokenizer

SMALL = train_tokenizer(['buy id_1 now', 'buy id_12 now, please'] * 5, ['id_1', 'id_12'], vocab_size=300)


@pytest.fixture(scope='module', params=[1, 2, 3])
def world(request):
    """An environment and the tokenizer trained on it."""
    env = Retail(request.param)
    return env, train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=512)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def episode(env, seed):
    messages, _ = env.reset(seed=seed)
    prompt, ended = messages, False
    while not ended:
        action = act(messages)
        answer, _, terminated, truncated, _ = env.step(action)
        messages = [*messages, {'role': 'assistant', 'content': action}, *answer]
        ended = terminated or truncated
    return prompt, messages


def test_train_tokenizer_keeps_special_tokens_whole_and_takes_the_longest():
    assert SMALL.convert_ids_to_tokens(ids(SMALL, 'id_12id_1')) == ['id_12', 'id_1']


def test_train_tokenizer_merges_across_spaces_but_not_special_tokens():
    assert [SMALL.decode([i]) for i in ids(SMALL, 'buy id_1 now')] == ['buy ', 'id_1', ' now']


def test_train_tokenizer_puts_chat_tokens_first():
    assert SMALL.convert_tokens_to_ids(list(CHAT_TOKENS)) == list(range(len(CHAT_TOKENS)))
    assert (SMALL.pad_token_id, SMALL.eos_token_id, SMALL.eos_token) == (0, 1, '<|im_end|>')


def test_train_tokenizer_is_deterministic():
    env = Retail()
    pair = [train_tokenizer(env.corpus(), env.special_tokens()) for _ in range(2)]
    assert pair[0].backend_tokenizer.to_str() == pair[1].backend_tokenizer.to_str()


@pytest.mark.parametrize(('words', 'size', 'match'), [(['a' * 9], 100, 'at least'), ([''], 400, 'empty')])
def test_train_tokenizer_refuses(words, size, match):
    with pytest.raises(ValueError, match=match):
        train_tokenizer(['text'], words, vocab_size=size)


@given(st.text(st.characters(exclude_categories=['Cs'])))
def test_encode_decodes_to_itself_for_any_text(text):
    assert SMALL.decode(ids(SMALL, text)) == text


def test_chat_template_is_one_token_per_role():
    messages = [{'role': 'user', 'content': 'id_1 '}, {'role': 'tool', 'content': 'id_12'}]
    rendered = SMALL.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == '<|user|>id_1 <|im_end|><|tool|>id_12<|im_end|><|assistant|>'
    tokens = SMALL.convert_ids_to_tokens(ids(SMALL, rendered))
    assert [t for t in tokens if t != 'Ġ'] == [
        '<|user|>', 'id_1', '<|im_end|>', '<|tool|>', 'id_12', '<|im_end|>', '<|assistant|>'
    ]  # fmt: skip


def test_save_pretrained_round_trips(tmp_path, world):
    env, tokenizer = world
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    _, messages = episode(env, 0)
    assert loaded.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (1, 0, len(tokenizer))


def test_world_round_trips(world):
    env, tokenizer = world
    rng = random.Random(1)
    texts = [message['content'] for seed in range(20) for message in episode(env, seed)[1]]
    texts += [env.placeholder, *(env.example(rng)[1] for _ in range(50)), Retail(brief=False).reset()[0][0]['content']]
    for text in texts:
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_world_is_economical(world):
    env, tokenizer = world
    assert len(tokenizer) == 512
    assert all(len(ids(tokenizer, word)) == 1 for word in env.special_tokens())
    for seed in range(50):
        prompt, messages = episode(env, seed)
        rendered = [tokenizer.apply_chat_template(m, tokenize=False) for m in (prompt, messages)]
        lengths = [len(ids(tokenizer, text)) for text in rendered]
        assert lengths[0] < 100 and lengths[1] < 400
        for message in messages:
            if message['role'] == 'assistant':
                assert len(ids(tokenizer, message['content'])) <= 16
