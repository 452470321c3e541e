"""Chat markup: what is fed piece by piece is what the tokenizer's own template renders as a whole."""

import itertools

import pytest
from chat_talks import CALL, HELLO, RENDERED, SYSTEM, TALKS, TOOLS, own, said, sampled, tool, user
from chat_templates import SHAPES, tokenizer_of
from hypothesis import given, settings, strategies as st

from infopo_jax.lm.chat import Chat
from infopo_jax.types import Role


@pytest.fixture(scope='module')
def chats():
    return {shape: Chat(tokenizer_of(shape)) for shape in SHAPES}


@pytest.fixture(params=SHAPES)
def chat(request, chats):
    return chats[request.param]


@pytest.mark.parametrize(
    ('shape', 'talk', 'has_system', 'has_tools'),
    [
        (shape, talk, system, tools)
        for shape, (shows_system, shows_tools, talks) in RENDERED.items()
        for talk in talks
        for system in {False, shows_system}
        for tools in {False, shows_tools}
    ],
)
def test_row_equals_the_templates_own_rendering(chats, shape, talk, has_system, has_tools):
    chat, opening, tools = chats[shape], [SYSTEM] * has_system + [HELLO], TOOLS if has_tools else None
    messages = list(opening)
    ids = chat.prompt(opening, tools)
    assert ids == own(chat, messages, tools)
    for text, answers in TALKS[talk]:
        ids += sampled(chat, text) + chat.reply(answers)[0]
        messages += [said(text), *answers]
        assert ids == own(chat, messages, tools)


def test_reply_folds_what_gemma_refuses_into_the_users_message(chats):
    ids, roles = chats['gemma'].reply([tool('on its way'), user('so what?')])
    pieces = [
        (''.join(chats['gemma'].decode([i]) for i, _ in run), role)
        for role, run in itertools.groupby(zip(ids, roles, strict=True), key=lambda pair: pair[1])
    ]
    assert pieces == [
        ('\n<start_of_turn>user\n<tool_response>\n', Role.TEMPLATE),
        ('on its way', Role.FEEDBACK),
        ('\n</tool_response>\n\n', Role.TEMPLATE),
        ('so what?', Role.FEEDBACK),
        ('<end_of_turn>\n<start_of_turn>model\n', Role.TEMPLATE),
    ]


def test_prompt_folds_a_system_message_into_the_users(chats):
    chat = chats['gemma']
    assert chat.prompt([SYSTEM, HELLO]) == own(chat, [user('You are a shop.\n\nhello, order_3')])
    greeted = [SYSTEM, said('hello'), HELLO]
    assert chat.prompt(greeted) == own(chat, [user('You are a shop.'), said('hello'), HELLO])


def test_mistral_rows_keep_system_and_tools_where_they_were_rendered(chats):
    chat, answers = chats['mistral'], [user('order_3')]
    prompt = chat.prompt([SYSTEM, HELLO], TOOLS)
    assert prompt == own(chat, [SYSTEM, HELLO], TOOLS)
    row = prompt + sampled(chat, 'which?') + chat.reply(answers)[0]
    assert row == prompt + own(chat, [HELLO, said('which?'), *answers])[len(own(chat, [HELLO])) :]


def test_mistral_calls_and_answers_read_as_the_template_writes_them(chats):
    chat = chats['mistral']
    calls = [{'name': 'get_order', 'arguments': {'order': 'order_3'}, 'id': '000000000'}]
    text = '[TOOL_CALLS] [{"name": "get_order", "arguments": {"order": "order_3"}, "id": "000000000"}]'
    answers = [tool('{"order_3": 1}'), tool('order_4')]
    ids = chat.prompt([HELLO]) + sampled(chat, text) + chat.reply(answers)[0] + sampled(chat, 'ok')
    ids += chat.reply([user('ok')])[0]
    whole = own(chat, [HELLO, {'role': 'assistant', 'tool_calls': calls}, *answers, said('ok'), user('ok')])
    assert chat.decode(ids) == chat.decode(whole)  # the markup is text here: '"' and ', ' may be one token in the whole
    special = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    assert [i for i in ids if i in special] == [i for i in whole if i in special]


def test_reply_hands_on_the_id_of_a_call(chats):
    chat, answer = chats['mistral'], {'role': 'tool', 'content': 'order_3', 'tool_call_id': 'abcdefghi'}
    assert 'abcdefghi' in chat.decode(chat.reply([answer])[0])
    assert '000000000' in chat.decode(chat.reply([{'role': 'tool', 'content': 'order_3'}])[0])


@pytest.mark.parametrize('talk', ['user', 'tool and user'])
def test_reply_closes_an_action_that_did_not_stop(chat, talk):
    for _, answers in TALKS[talk]:
        ids, roles = chat.reply(answers, stopped=False)
        assert ids[0] == chat.stop_id and roles[0] == Role.TEMPLATE
        after, after_roles = chat.reply(answers)
        assert ([chat.stop_id, *after], [Role.TEMPLATE, *after_roles]) == (ids, roles)


@pytest.mark.parametrize('talk', TALKS)
def test_reply_marks_contents_as_feedback_and_the_rest_as_template(chat, talk):
    for _, answers in TALKS[talk]:
        ids, roles = chat.reply(answers)
        inside = [chat.encode(chat.decode(chat.content(m))) for m in answers]
        assert [i for i, role in zip(ids, roles, strict=True) if role == Role.FEEDBACK] == [
            i for part in inside for i in part
        ]
        for m, part in zip(answers, inside, strict=True):
            assert chat.decode(part).strip().strip('"') == m['content']
        changed = [m | {'content': 'quite another'} for m in answers]
        markup, same = (
            [i for i, role in zip(*chat.reply(a), strict=True) if role == Role.TEMPLATE] for a in (answers, changed)
        )
        assert markup == same and set(roles) == {Role.TEMPLATE, Role.FEEDBACK}


def test_reply_counts_white_space_behind_the_stop_token_as_template(chats):
    behind = {'chatml': '\n<|im_start|>', 'gemma': '\n<start_of_turn>', 'llama3': '<|start_header_id|>'}
    for shape, after in behind.items():
        chat = chats[shape]
        ids, roles = chat.reply([user('hello')])
        assert chat.decode(ids).startswith(after) and roles[0] == Role.TEMPLATE


def test_reply_writes_contents_as_the_template_does(chats):
    llama, quoted = chats['llama3'], {'role': 'tool', 'content': '{"order_3": "é\n"}'}
    assert llama.decode(llama.content(quoted)) == r'{\"order_3\": \"é\n\"}'  # a JSON string, quotes are markup
    assert llama.reply([quoted])[0] == own(llama, [HELLO, said('x'), quoted])[-len(llama.reply([quoted])[0]) :]
    assert llama.decode(llama.content(user('  hello\n'))) == 'hello'
    assert chats['chatml'].decode(chats['chatml'].content(user('  hello\n'))) == '  hello\n'


def test_reply_keeps_contents_apart_from_markup_that_would_merge_with_them(chats):
    chat, answers = chats['qwen3'], [tool('{"order_3": 1}}')]
    ids = chat.prompt([HELLO]) + sampled(chat, CALL) + chat.reply(answers)[0]
    merged = own(chat, [HELLO, said(CALL), *answers])
    assert chat.decode(ids) == chat.decode(merged)
    assert '}}Ċ' in chat.tokenizer.convert_ids_to_tokens(merged) and len(ids) == len(merged) + 1
    text = chat.decode(own(chat, [HELLO, said(CALL), tool('}')]))  # two tokens here, one there: the text is the same
    assert text == chat.decode(chat.prompt([HELLO]) + sampled(chat, CALL) + chat.reply([tool('}')])[0])


CONTENTS = st.text(st.characters(exclude_categories=['Cs']), max_size=20)
SPELLED = st.sampled_from(
    ['<|im_end|>', '</s>', '[INST]', '<end_of_turn>', '<|eot_id|>', '<tool_response>', '\ue0f1\ue0f2']
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.sampled_from(['user', 'tool']), st.lists(CONTENTS | SPELLED, max_size=4))
def test_reply_renders_any_content_without_a_token_of_markup(chats, shape, role, parts):
    chat, content = chats[shape], ''.join(parts)
    special = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    message = {'role': role, 'content': content}
    ids, roles = chat.reply([message])
    inside = [i for i, r in zip(ids, roles, strict=True) if r == Role.FEEDBACK]
    assert special.isdisjoint(inside) and inside == chat.content(message)
    assert special & set(ids) == special & set(chat.reply([message | {'content': 'hello'}])[0])
    text = chat.decode(inside).removeprefix(' ' * (shape == 'mistral'))
    assert text.replace('\ue0f1\ue0f2', '') == chat.template.written(message).replace('\ue0f1\ue0f2', '')
