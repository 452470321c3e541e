"""One dialogue at a time, with the agent's tokens written by hand."""

import dataclasses
import threading

import pytest
from chat_templates import tokenizer_of
from talk import LONG, Colour, tiny_chat

from infopo_jax.lm.chat import Chat
from infopo_jax.rollout.dialogue import CUT, TOO_LONG, Dialogue, Limits, PromptTooLong, UserFailed
from infopo_jax.rollout.workers import Workers
from infopo_jax.types import EndReason, Role

CHAT = tiny_chat()
LIMITS = Limits(
    max_turns=4, max_tokens=200, max_prompt_tokens=40, max_action_tokens=8, max_feedback_tokens=60, max_bad_actions=2
)
ROOMY = {'max_action_tokens': 200, 'max_tokens': 2000, 'max_prompt_tokens': 200, 'max_turns': 9}


def begin(task='red', *, env=None, chat=CHAT, **limits):
    dialogue = Dialogue(chat, dataclasses.replace(LIMITS, **limits), task, group=0, member=0, seed=0)
    dialogue.start(env or Colour())
    return dialogue


def feed(dialogue, size=5):
    """Takes what is pending as the engine does, in chunks; returns it."""
    fed = []
    while dialogue.pending:
        fed += dialogue.take(size)
    assert dialogue.take(size) == []
    return fed


def say(dialogue, text, *, stop=True, chunk=3):
    """Lets the agent speak: prompt or feedback is fed, then its tokens come in chunks."""
    feed(dialogue)
    ids = CHAT.encode(text) + [CHAT.stop_id] * stop
    for start in range(0, len(ids), chunk):
        assert not dialogue.spoken
        part = ids[start : start + min(chunk, dialogue.budget)]
        dialogue.hear(part, [-0.1] * len(part))
    assert dialogue.spoken
    dialogue.step()
    return dialogue


def utter(dialogue, chat, text, stop):
    dialogue.hear([*chat.encode_action(text), stop], [-0.1] * (len(chat.encode_action(text)) + 1))
    assert dialogue.spoken
    dialogue.step()


def marked(dialogue):
    """Returns the row as text with a letter per role before each run."""
    letters, out, i = 'xPAFT', '', 0
    while i < len(dialogue.ids):
        j = i
        while j < len(dialogue.ids) and dialogue.roles[j] == dialogue.roles[i]:
            j += 1
        out += f'[{letters[dialogue.roles[i]]}]{CHAT.decode(dialogue.ids[i:j])}'
        i = j
    return out


def test_dialogue_lays_out_roles_and_turns():
    d = say(say(begin(), 'ask'), 'take red')
    assert marked(d) == (
        '[P]<|system|>take <|im_end|><|user|>which colour<|im_end|><|assistant|>'
        '[A]ask<|im_end|>[T]<|user|>[F]it is red[T]<|im_end|><|assistant|>'
        '[A]take red<|im_end|>'
    )
    turns = {role: [t for t, r in zip(d.turns, d.roles, strict=True) if r == role] for role in Role}
    assert set(turns[Role.PROMPT]) == {-1} and set(turns[Role.FEEDBACK]) == set(turns[Role.TEMPLATE]) == {0}
    assert sorted(set(turns[Role.ACTION])) == [0, 1]
    assert (d.num_turns, d.end_reason, d.outcome, d.success, d.valid) == (2, EndReason.DONE, 1.0, True, True)
    assert (d.rewards, d.errors) == ([0.0, 1.0], [False, False])
    assert [x for x, r in zip(d.logps, d.roles, strict=True) if r == Role.ACTION] == [-0.1] * len(turns[Role.ACTION])
    assert {x for x, r in zip(d.logps, d.roles, strict=True) if r != Role.ACTION} == {0.0}


def test_success_is_the_environments_own_test():
    d = say(begin(), 'take blue')
    assert (d.end_reason, d.outcome, d.success, d.valid) == (EndReason.DONE, 0.0, False, True)


@pytest.mark.parametrize('chunk', [1, 2, 50])
def test_dialogue_feeds_its_very_ids_once_and_in_order(chunk):
    """Sampled tokens are fed as they come, save the one that ends an action: it goes in front of the feedback."""
    d, in_cache = begin(), []
    for text in ('ask', 'half', 'bogus'):
        in_cache += feed(d)
        assert in_cache == d.ids
        ids = [*CHAT.encode(text), CHAT.stop_id]
        for start in range(0, len(ids), chunk):
            d.hear(ids[start : start + chunk], [0.0] * len(ids[start : start + chunk]))
        in_cache += ids[:-1]
        assert d.fed == len(in_cache)
        d.step()
        assert d.pending and d.ids[d.fed] == CHAT.stop_id
    assert in_cache + feed(d) == d.ids


def test_step_closes_an_action_at_its_cap_and_says_that_it_was_too_long():
    d = say(begin(), 'abcdefgh', stop=False)
    assert d.errors == [True] and d.num_turns == 1 and not d.ended
    assert marked(d).endswith(f'[A]abcdefgh[T]<|im_end|><|tool|>[F]{TOO_LONG}[T]<|im_end|><|assistant|>')
    assert d.ids[d.fed] == CHAT.encode('h')[0]  # the last sampled token waits to be fed
    say(d, 'abcdefgh', stop=False)
    assert d.end_reason == EndReason.BAD_ACTION


def test_step_takes_a_stop_token_at_the_cap_as_a_stop():
    d = say(begin(max_action_tokens=len(CHAT.encode('ask')) + 1), 'ask')
    assert d.errors == [False] and 'it is red' in marked(d)


def test_bad_actions_must_come_in_a_row():
    d = begin(max_turns=9)
    for text in ('bogus', 'ask', 'bogus'):
        say(d, text)
        assert not d.ended
    say(d, 'bogus')
    assert (d.end_reason, d.success, d.valid) == (EndReason.BAD_ACTION, False, True)
    assert d.errors == [True, False, True, True]


@pytest.mark.parametrize(
    ('actions', 'limits', 'end'),
    [
        (['half', 'ask', 'ask', 'ask'], {}, EndReason.TURN_LIMIT),
        (['half', 'stop'], {}, EndReason.TURN_LIMIT),
        (['half', 'bogus', 'bogus'], {}, EndReason.BAD_ACTION),
        (['half', 'long'], {'max_tokens': 40}, EndReason.TOKEN_LIMIT),
    ],
)
def test_truncated_rollouts_keep_partial_credit_without_success(actions, limits, end):
    d = begin(**limits)
    for text in actions:
        assert not d.ended
        say(d, text)
    assert (d.end_reason, d.outcome, d.success, d.valid) == (end, 0.5, False, True)
    assert d.roles[-1] == Role.ACTION  # nothing follows the last action
    assert len(d.ids) <= (limits.get('max_tokens') or LIMITS.max_tokens)


def test_an_action_that_runs_into_the_end_of_the_row_ends_it():
    start = len(begin().ids)
    d = begin(max_tokens=start + 5)
    assert d.budget == 5
    say(d, 'abcde', stop=False)
    assert (d.end_reason, len(d.ids), d.num_turns) == (EndReason.TOKEN_LIMIT, start + 5, 1)


@pytest.mark.parametrize('most', [1, 2, 4, 6, 9, 30])
def test_feedback_is_cut_with_a_marker_to_at_most_its_tokens(most):
    for text, contents in (('long', [LONG]), ('half', ['it is ', 'red'])):
        d = say(begin(max_feedback_tokens=most), text)
        feedback = [x for x, role in zip(d.ids, d.roles, strict=True) if role == Role.FEEDBACK]
        shown, whole = CHAT.decode(feedback), ''.join(contents)
        assert len(feedback) <= most
        if most >= sum(len(CHAT.encode(content)) for content in contents):
            assert shown == whole
        else:
            assert shown in ('', contents[0]) or (shown.endswith(CUT) and whole.startswith(shown.removesuffix(CUT)))


def test_feedback_is_not_cut_inside_a_character():
    class Accents(Colour):
        def step(self, text):
            return 'é' * 20, 0.0, False, False, {'is_error': False}

    for most in (7, 8, 9, 10):
        d = say(begin(env=Accents(), max_feedback_tokens=most), 'ask')
        shown = CHAT.decode([x for x, role in zip(d.ids, d.roles, strict=True) if role == Role.FEEDBACK])
        assert set(shown.removesuffix(CUT)) == {'é'} and len(CHAT.encode(shown)) <= most


def test_start_names_the_task_whose_prompt_is_too_long():
    with pytest.raises(PromptTooLong, match=r"prompt of task 'red' has \d+ tokens, more than 5: raise "):
        begin(max_prompt_tokens=5)
    size = len(begin().ids)
    assert len(begin(max_tokens=size + 1).ids) == size  # room for one token to be said
    with pytest.raises(ValueError, match=f'more than {size - 1}'):
        begin(max_tokens=size)


@pytest.mark.parametrize(
    ('error', 'end'), [(RuntimeError('boom'), EndReason.ENV_ERROR), (UserFailed('gone'), EndReason.USER_ERROR)]
)
def test_a_failing_environment_makes_the_row_invalid(error, end):
    at_reset = begin(env=Colour({'red': error}))
    at_step = say(say(begin(env=Colour({'ask': error})), 'half'), 'ask')
    for d in (at_reset, at_step):
        assert (d.end_reason, d.valid, d.success, d.outcome) == (end, False, False, 0.0)
        assert d.error_text == f'{type(error).__name__}: {error}'
        assert d.ids and not d.pending
    assert (at_step.num_turns, at_step.rewards) == (2, [0.5, 0.0])
    assert (at_reset.num_turns, at_reset.rewards) == (0, [])


class Breaks(Colour):
    """Opens, or answers, with what it is given."""

    def __init__(self, *, opening=('which colour', {}), answer=('it is ', 0.0, False, False, {})):
        super().__init__()
        self.opening, self.answer = opening, answer

    def reset(self, *, seed=0, options=None):
        return self.opening

    def step(self, text):
        return self.answer


def ended(outcome):
    return 'nothing', 0.5, True, False, {'success': True, 'outcome': outcome}


@pytest.mark.parametrize(
    ('answer', 'words'),
    [
        (([{'role': 'user'}], 0.0, False, False, {}), "{'role': str, 'content': str}, got {'role': 'user'}"),
        (([{'role': 'user', 'content': None}], 0.0, False, False, {}), "'content': None"),
        (([{'content': 'red'}], 0.0, False, False, {}), "got {'content': 'red'}"),
        ((['red'], 0.0, False, False, {}), "got 'red'"),
        ((None, 0.0, False, False, {}), 'NoneType'),
        (('\ud800', 0.0, False, False, {}), ''),  # half a character
        (('red', None, False, False, {}), 'the reward must be a finite number, got None'),
        (('red', float('nan'), False, False, {}), 'the reward must be a finite number, got nan'),
        (('red', 0.0, False, False, None), 'NoneType'),
        (ended(None), "info['outcome'] must be a finite number, got None"),
        (ended('won'), "info['outcome'] must be a finite number, got 'won'"),
        (ended(float('inf')), "info['outcome'] must be a finite number, got inf"),
        (None, 'NoneType'),
    ],
    ids=str,
)
def test_an_answer_that_breaks_the_contract_fails_its_rollout_and_says_why(answer, words):
    d = say(begin(env=Breaks(answer=answer)), 'ask')
    assert (d.end_reason, d.valid, d.success, d.outcome) == (EndReason.ENV_ERROR, False, False, 0.0)
    assert 'breaks the contract of envs/text.py: ' in d.error_text and words in d.error_text
    assert d.num_turns == len(d.rewards) == len(d.errors) == 1 and not d.pending and not d.waiting


@pytest.mark.parametrize(
    'opening',
    [
        ([{'role': 'system', 'content': None}, {'role': 'user', 'content': 'which colour'}], {}),
        ([{'role': 'user'}], {}),
        ([], {}),
        ('which colour', {'tools': [{'name': 'ask'}, 3]}),
        ('which colour', None),
        'which colour',
    ],
    ids=str,
)
def test_an_opening_that_breaks_the_contract_fails_its_rollout(opening):
    d = begin(env=Breaks(opening=opening))
    assert (d.end_reason, d.valid, d.num_turns) == (EndReason.ENV_ERROR, False, 0)
    assert 'breaks the contract of envs/text.py: ' in d.error_text and d.ids


def test_a_role_that_the_chat_template_refuses_fails_its_rollout():
    chat = Chat(tokenizer_of('gemma'))  # user and model are to alternate, and the model has just spoken
    env = Breaks(answer=([{'role': 'assistant', 'content': 'red'}], 0.0, False, False, {}))
    d = begin(chat=chat, env=env, **ROOMY)
    feed(d)
    utter(d, chat, 'red', chat.stop_id)
    assert (d.end_reason, d.valid) == (EndReason.ENV_ERROR, False)
    assert "the chat template cannot render messages of the roles ['user', 'assistant', 'assistant']" in d.error_text


class Listener(Colour):
    """Remembers what it heard; a tool answers with JSON, or the user where the agent thanks him."""

    def __init__(self, answer='{"colour": "red"}', times=1):
        super().__init__()
        self.heard, self.answer, self.times = [], answer, times

    def reset(self, *, seed=0, options=None):
        return 'which colour', {}

    def step(self, text):
        self.heard.append(text)
        role = 'user' if 'thanks' in text else 'tool'
        return [{'role': role, 'content': self.answer}] * self.times, 0.0, False, False, {'is_error': False}


def test_an_environment_hears_calls_in_one_layout_whatever_the_model_writes():
    chat, env = Chat(tokenizer_of('llama3')), Listener()
    d = begin(chat=chat, env=env, **ROOMY)
    for text, stop in zip(['{"name": "f", "parameters": {}}', 'red'], chat.stop_ids, strict=False):
        feed(d)
        utter(d, chat, text, stop)  # any stop token ends an action, and stays what it is
        assert stop in d.ids and not d.ended
    assert env.heard == ['<tool_call>{"name": "f", "arguments": {}}</tool_call>', 'red']


def test_feedback_is_cut_by_the_tokens_that_are_fed():
    """Llama's template writes a tool's answer as a JSON string, which is longer than the answer."""
    chat, answer = Chat(tokenizer_of('llama3')), '"' * 30
    whole = 2 * len(chat.content({'role': 'tool', 'content': answer}))
    for most in (4, 20, whole // 2 + 5, whole - 5, whole):
        d = begin(chat=chat, env=Listener(answer, times=2), **ROOMY, max_feedback_tokens=most)
        feed(d)
        utter(d, chat, 'red', chat.stop_id)
        feedback = [x for x, role in zip(d.ids, d.roles, strict=True) if role == Role.FEEDBACK]
        assert len(feedback) <= most
        assert (chat.decode(feedback) == '\\"' * 60) == (whole <= most)


def test_a_row_without_old_thoughts_is_rendered_anew_and_fed_again_from_where_it_changed():
    chat = Chat(tokenizer_of('qwen3'), keep_thinking=False)
    d, cache = begin(chat=chat, env=Listener(), **ROOMY), {}
    for text in ('<think>\nhm\n</think>\n\nred', '<think>\nso\n</think>\n\nthanks', 'red', 'thanks'):
        while d.pending:
            start = d.fed
            cache |= enumerate(d.take(7), start)
        assert [cache[i] for i in range(d.fed)] == d.ids  # what stands further on is of later positions: not seen
        start = d.fed
        utter(d, chat, text, chat.stop_id)
        cache |= enumerate(chat.encode_action(text), start)
        assert d.pending and [cache[i] for i in range(d.fed)] == d.ids[: d.fed]
        shown = chat.decode(d.ids)
        assert ('hm' in shown) == (text.endswith('red') and d.num_turns == 1)  # until the user spoke
    assert shown.count('<think>') == 0 and not any(d.logps)
    messages = [{'role': 'user', 'content': 'which colour'}]
    for text, role in [('red', 'tool'), ('thanks', 'user'), ('red', 'tool'), ('thanks', 'user')]:
        messages += [{'role': 'assistant', 'content': text}, {'role': role, 'content': '{"colour": "red"}'}]
    assert shown == chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert len(d.ids) == len(d.roles) == len(d.turns) == len(d.logps)


def test_a_row_without_old_thoughts_that_grows_too_long_ends():
    chat = Chat(tokenizer_of('qwen3'), keep_thinking=False)
    size = len(begin(chat=chat, env=Listener(), **ROOMY).ids)
    d = begin(chat=chat, env=Listener(), **ROOMY | {'max_tokens': size + 12, 'max_prompt_tokens': size + 1})
    feed(d)
    utter(d, chat, 'red', chat.stop_id)
    assert d.end_reason == EndReason.TOKEN_LIMIT and d.roles[-1] == Role.ACTION


def test_drawn_counts_every_sampled_token_also_where_the_row_gets_shorter():
    """Two turns may begin at the same length of a row that is rendered anew, never at the same ``drawn``."""
    chat = Chat(tokenizer_of('qwen3'), keep_thinking=False)
    d, sizes, counts = begin(chat=chat, env=Listener(), **ROOMY), [], []
    thought = 'well, ' * 40
    for text in (f'<think>\n{thought}\n</think>\n\nred', 'thanks', 'red', 'thanks'):
        feed(d)
        sizes.append(len(d.ids))
        counts.append(d.drawn)
        utter(d, chat, text, chat.stop_id)
        assert d.drawn == counts[-1] + len(chat.encode_action(text)) + 1
    assert sizes != sorted(sizes), 'the row has become shorter'
    assert counts == sorted(set(counts)) and counts[0] == 0 == d.anew().drawn


def test_drawn_is_the_number_of_action_tokens_of_a_row_that_only_grows():
    d = say(say(begin(), 'ask'), 'abcdefgh', stop=False)
    assert d.drawn == d.roles.count(Role.ACTION) > 0
    d.hear([5, 6], [0.0, 0.0])
    assert d.drawn == d.roles.count(Role.ACTION)


def test_an_environment_that_opens_after_its_time_is_closed():
    release, closed = threading.Event(), threading.Event()

    class Hangs(Colour):
        def reset(self, *, seed=0, options=None):
            release.wait(20)
            return super().reset(seed=seed, options=options)

        def close(self):
            closed.set()

    d = Dialogue(CHAT, LIMITS, 'red', group=0, member=0, seed=0)
    crew = Workers(1, limit=0.05)
    try:
        crew.submit(d, d.ask(Hangs))
        (reply,) = crew.collect(wait=20)
        d.fail(reply.error)
        assert d.leave() is None and not closed.is_set()  # there is nothing yet that could be closed
        release.set()
        assert closed.wait(20)
    finally:
        crew.close()


@pytest.mark.parametrize('error', [RuntimeError('boom'), SystemExit(3)])
def test_an_environment_that_fails_at_once_is_closed(error):
    closed = []

    class Closing(Colour):
        def close(self):
            closed.append(self)

    call = Dialogue(CHAT, LIMITS, 'red', group=0, member=0, seed=0).ask(lambda: Closing({'red': error}))
    with pytest.raises(type(error)):
        call()
    assert len(closed) == 1
