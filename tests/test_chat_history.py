"""Thoughts: which stay in a row, and rows that are rendered anew without the old ones."""

import pytest
from chat_talks import CALL, HELLO, RENDERED, SYSTEM, TALKS, TOOLS, own, said, sampled, tool, user
from chat_templates import SHAPES, tokenizer_of

from infopo_jax.lm.chat import Chat
from infopo_jax.types import Role


@pytest.fixture(scope='module')
def chats():
    return {shape: Chat(tokenizer_of(shape)) for shape in SHAPES}


THOUGHT = '<think>\nhm, order_3\n</think>\n\n'
THINKING = [
    (THOUGHT + CALL, [tool('on its way')]),
    (THOUGHT + CALL, [tool('on'), tool('its way')]),
    (THOUGHT + 'it is on its way', [user('thanks')]),
    ('ok', [user('and order_4')]),
    (THOUGHT + CALL, [tool('no order')]),
]


def history(chat, talk, opening=(SYSTEM, HELLO), tools=TOOLS):
    return chat.history(list(opening), [(sampled(chat, text), answers) for text, answers in talk], tools)


@pytest.mark.parametrize('switch', [None, True, False])
@pytest.mark.parametrize('num_turns', range(1, len(THINKING) + 1))
def test_history_is_what_the_template_renders_without_old_thoughts(num_turns, switch):
    chat = Chat(tokenizer_of('qwen3'), keep_thinking=False, enable_thinking=switch)
    talk = THINKING[:num_turns]
    ids, roles, turn = history(chat, talk)
    messages = [SYSTEM, HELLO, *(m for text, answers in talk for m in (said(text), *answers))]
    assert ids == own(chat, messages, TOOLS, **({} if switch is None else {'enable_thinking': switch}))
    assert len(ids) == len(roles) == len(turn) and turn == sorted(turn) and turn[-1] == num_turns - 1
    for t, (text, answers) in enumerate(talk):
        mine = [(i, role) for i, role, at in zip(ids, roles, turn, strict=True) if at == t]
        forgotten = any(m['role'] == 'user' for _, later in talk[t:] for m in later)
        shown = text.removeprefix(THOUGHT) if forgotten else text
        assert [i for i, role in mine if role == Role.ACTION] == sampled(chat, shown)
        assert [i for i, role in mine if role == Role.FEEDBACK] == [i for m in answers for i in chat.content(m)]
    assert all((role == Role.PROMPT) == (at == -1) for role, at in zip(roles, turn, strict=True))


def test_history_keeps_the_sampled_ids_of_actions_that_the_template_leaves_alone():
    chat = Chat(tokenizer_of('qwen3'), keep_thinking=False)
    odd = [i for char in 'order_3' for i in chat.encode(char)]  # not how the tokenizer would write it
    assert odd != chat.encode('order_3')
    ids, roles, _ = chat.history([HELLO], [([*odd, chat.stop_ids[1]], [user('ok')])])
    assert [i for i, role in zip(ids, roles, strict=True) if role == Role.ACTION] == [*odd, chat.stop_ids[1]]
    cut, cut_roles, _ = chat.history([HELLO], [(odd, [user('ok')])])  # it ran into its cap: markup closes it
    assert cut == [chat.stop_id if i == chat.stop_ids[1] else i for i in ids]
    assert cut_roles[ids.index(chat.stop_ids[1])] == Role.TEMPLATE
    thought = chat.encode_action('<think>\nhm\n</think>\n\nhello')  # rewritten, but ended as it was
    for end in ([chat.stop_ids[1]], []):
        ids, roles, _ = chat.history([HELLO], [([*thought, *end], [user('ok')])])
        action = [i for i, role in zip(ids, roles, strict=True) if role == Role.ACTION]
        assert action == [*chat.encode_action('hello'), *end]


@pytest.mark.parametrize('shape', SHAPES)
def test_history_without_thoughts_is_the_row_that_grew(chats, shape):
    chat = chats[shape]
    for talk in (TALKS[name] for name in RENDERED[shape][2]):
        ids, roles = chat.prompt([HELLO]), [Role.PROMPT] * len(chat.prompt([HELLO]))
        for text, answers in talk:
            action, (after, after_roles) = sampled(chat, text), chat.reply(answers)
            ids, roles = [*ids, *action, *after], [*roles, *[Role.ACTION] * len(action), *after_roles]
        assert history(chat, talk, [HELLO], None)[:2] == (ids, roles)


def test_keep_thinking_decides_only_where_the_template_drops_thoughts(chats):
    assert chats['qwen3'].append_only and chats['qwen3'].template.drops_thinking
    for shape in ('chatml', 'llama3', 'gemma', 'mistral', 'tiny'):
        chat = Chat(tokenizer_of(shape), keep_thinking=False)
        assert chat.append_only
        chat.check_trainable()
    chats['qwen3'].check_trainable()
    with pytest.raises(ValueError, match=r'keep_thinking = False.*cannot be trained on; set it to True'):
        Chat(tokenizer_of('qwen3'), keep_thinking=False).check_trainable()


def test_enable_thinking_is_handed_to_the_template(chats):
    quiet = Chat(tokenizer_of('qwen3'), enable_thinking=False)
    assert quiet.decode(quiet.prompt([HELLO])).endswith('<|im_start|>assistant\n<think>\n\n</think>\n\n')
    ids, roles = quiet.reply([user('hello')])
    assert quiet.decode(ids).endswith('<think>\n\n</think>\n\n') and roles[-1] == Role.TEMPLATE
    empty = quiet.encode_action('<think>\n\n</think>\n\n')
    assert quiet.prompt([HELLO]) == [*chats['qwen3'].prompt([HELLO]), *empty]
