"""Chat markup: what is fed piece by piece is what the tokenizer renders as a whole."""

import pytest

from infopo_jax.lm.chat import Chat
from infopo_jax.lm.tokenizer import train_tokenizer
from infopo_jax.types import Role

CORPUS = ['which order please', 'order id_1 is on its way', 'You are a shop. hello, thanks'] * 3

CHATML = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m['content'] + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{% set role = 'ipython' if m['role'] == 'tool' else m['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + (m['content'] | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MARKUP = {
    'tiny': (None, [], '<|im_end|>'),
    'chatml': (CHATML, ['<|im_start|>'], '<|im_end|>'),
    'llama': (LLAMA, ['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], '<|eot_id|>'),
}

OPENING = [{'role': 'system', 'content': 'You are a shop.'}, {'role': 'user', 'content': 'hello, id_1'}]
TALK = [
    ('which order please', [{'role': 'user', 'content': 'order id_1'}]),
    ('order id_1', [{'role': 'tool', 'content': '{"id_1": "on its way"}'}, {'role': 'user', 'content': 'thanks'}]),
    ('id_1 please', [{'role': 'tool', 'content': 'order'}, {'role': 'tool', 'content': 'id_1 is'}]),
]


def tokenizer_of(style):
    template, words, end = MARKUP[style]
    tokenizer = train_tokenizer(CORPUS, ['id_1'], vocab_size=320)
    if template is not None:
        tokenizer.add_special_tokens({'additional_special_tokens': words})
        tokenizer.chat_template, tokenizer.eos_token = template, end
    return tokenizer


@pytest.fixture(scope='module', params=MARKUP)
def chat(request):
    return Chat(tokenizer_of(request.param))


def whole(chat, messages, tools=None):
    text = chat.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    return chat.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize('tools', [None, [{'type': 'function', 'function': {'name': 'order'}}]])
def test_prompt_actions_and_replies_equal_the_rendering_of_the_whole_talk(chat, tools):
    ids, messages = chat.prompt(OPENING, tools), list(OPENING)
    assert ids == whole(chat, messages, tools)
    for said, answers in TALK:
        ids += [*chat.encode(said), chat.stop_id, *chat.reply(answers)[0]]
        messages += [{'role': 'assistant', 'content': said}, *answers]
        assert ids == whole(chat, messages, tools)


def test_reply_closes_an_action_that_did_not_stop(chat):
    said, answers = 'which order', TALK[1][1]
    messages = [*OPENING, {'role': 'assistant', 'content': said}, *answers]
    ids, roles = chat.reply(answers, stopped=False)
    assert chat.prompt(OPENING) + chat.encode(said) + ids == whole(chat, messages)
    assert ids[0] == chat.stop_id and roles[0] == Role.TEMPLATE
    stopped_ids, stopped_roles = chat.reply(answers)
    assert ([chat.stop_id, *stopped_ids], [Role.TEMPLATE, *stopped_roles]) == (ids, roles)


@pytest.mark.parametrize('answers', [answers for _, answers in TALK])
def test_reply_marks_contents_as_feedback_and_the_rest_as_template(chat, answers):
    ids, roles = chat.reply(answers)
    contents = [x for x, role in zip(ids, roles, strict=True) if role == Role.FEEDBACK]
    assert chat.decode(contents) == ''.join(m['content'] for m in answers)
    assert set(roles) == {Role.FEEDBACK, Role.TEMPLATE} and roles[-1] == Role.TEMPLATE
    changed, same = chat.reply([m | {'content': 'thanks'} for m in answers])
    markup = [x for x, role in zip(ids, roles, strict=True) if role == Role.TEMPLATE]
    assert markup == [x for x, role in zip(changed, same, strict=True) if role == Role.TEMPLATE]


def test_prompt_is_a_fresh_list_each_time(chat):
    first = chat.prompt(OPENING)
    first.append(0)
    assert chat.prompt(OPENING) == first[:-1]


def test_action_text_ends_at_the_stop_token(chat):
    ids = chat.encode('order id_1')
    assert chat.action_text([*ids, chat.stop_id]) == chat.action_text(ids) == 'order id_1'
    assert chat.action_text([chat.stop_id]) == ''


def test_chat_refuses_what_it_cannot_use():
    tokenizer = tokenizer_of('tiny')
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r'set tokenizer\.chat_template'):
        Chat(tokenizer)
    tokenizer = tokenizer_of('tiny')
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r'set tokenizer\.eos_token'):
        Chat(tokenizer)
    tokenizer = tokenizer_of('tiny')
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'tool' %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    assert Chat(tokenizer).reply([{'role': 'user', 'content': 'hello'}])[0]
    with pytest.raises(ValueError, match='hides the content'):
        Chat(tokenizer).reply([{'role': 'tool', 'content': 'hello'}])


def test_reply_refuses_an_eos_token_that_does_not_end_a_turn():
    tokenizer = tokenizer_of('llama')
    tokenizer.eos_token = '<|im_end|>'  # a token that the template never writes
    with pytest.raises(ValueError, match=r"ends what the agent says with '<\|eot_id.*set tokenizer.eos_token"):
        Chat(tokenizer).reply([{'role': 'user', 'content': 'hello'}])
