"""One dialogue at a time, with the agent's tokens written by hand."""

import threading

import pytest
from dialogues import CHAT, LIMITS, begin, exchange, feed, marked, say
from talk import LONG, Colour

from infopo_jax.rollout.dialogue import CUT, TOO_LONG, Dialogue, PromptTooLong, UserFailed
from infopo_jax.rollout.workers import Workers
from infopo_jax.types import EndReason, Role


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
        exchange(d)
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
        (['half', 'refused', 'refused', 'bogus'], {}, EndReason.TURN_LIMIT),  # an error need not be malformed
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


CAPPED = 'abcdefgh'  # as long as an action may be


class Costly(Colour):
    """Where it is ended from outside, a turn costs 0.1, also one that was too long to be heard."""

    def score(self, num_turns):
        return -0.1 * num_turns


@pytest.mark.parametrize(
    ('actions', 'limits', 'end', 'outcome'),
    [
        ([CAPPED, 'ask', 'ask', CAPPED], {}, EndReason.TURN_LIMIT, -0.4),
        ([CAPPED, CAPPED], {}, EndReason.BAD_ACTION, -0.2),
        (['ask', 'long'], {'max_tokens': 40}, EndReason.TOKEN_LIMIT, -0.2),
        ([CAPPED, 'take red'], {}, EndReason.DONE, 1.0),
        ([CAPPED, 'stop'], {}, EndReason.TURN_LIMIT, 0.0),
    ],
)
def test_environment_scores_what_was_ended_from_outside(actions, limits, end, outcome):
    d = begin(env=Costly(), **limits)
    for text in actions:
        assert not d.ended
        say(d, text, stop=text != CAPPED)
    assert (d.end_reason, round(d.outcome, 6)) == (end, outcome)


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
