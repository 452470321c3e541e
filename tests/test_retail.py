"""The retail world: its tasks, and episodes in it."""

import random

import pytest
from retail_play import CANCEL, RETURN, contents, play, start

from infopo_jax.envs.retail import Retail, teach
from infopo_jax.envs.retail.expert import act
from infopo_jax.envs.retail.tasks import LEVELS, make
from infopo_jax.envs.tools import render


def random_success(level, *, copies, episodes=2000):
    """Returns the success rate of uniformly random legal actions, with known arguments copied or all at random."""
    env, rng, wins = Retail(level), random.Random(0), 0
    tasks = env.tasks('train')
    for seed in range(episodes):
        env.reset(seed=seed, options={'task': rng.choice(tasks)})
        ended = False
        while not ended:
            action = env.random_action(rng) if copies else teach.random_action(rng, rng.choice(teach.KINDS[level]), {})
            *_, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
        wins += info['success']
    return wins / episodes


# Tasks


@pytest.mark.parametrize('level', LEVELS)
def test_tasks_hold_out_goals(level):
    env = Retail(level)
    train, test = env.tasks('train'), env.tasks('test')
    assert len(set(train)) == len(train) > 200 and len(set(test)) == len(test) > 50
    parts = [{goal for task in split for goal in task.split(' & ')} for split in (train, test)]
    assert not parts[0] & parts[1]  # also each half of a pair


def test_tasks_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="'train' or 'test'"):
        Retail().tasks('valid')


@pytest.mark.parametrize('task', ['', 'nothing', 'cancel_order order_99 delay', f'{CANCEL} & {RETURN}', 7, ['a']])
def test_reset_refuses_an_unknown_task(task):
    with pytest.raises(ValueError, match='unknown task'):
        start(task)


def test_make_refuses_a_task_that_no_shop_allows():
    with pytest.raises(ValueError, match='cannot be carried out'):
        make(2, 'exchange_item order_1 item_2 item_2')


# Episodes


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_expert_solves_every_task(level, split):
    env = Retail(level)
    for seed, task in enumerate(env.tasks(split)):
        messages, _ = env.reset(seed=seed, options={'task': task})
        messages, (reward, terminated, truncated, info) = play(env, messages, lambda _: env.expert())
        assert terminated and not truncated, contents(messages)
        assert info == {'is_error': False, 'success': True, 'outcome': 1.0} and reward == 1.0


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('text', ['', 'How can I help?', 'Goodbye.', render('get_order', {'order': 'order_1'})])
def test_doing_nothing_scores_zero(level, text):
    env = Retail(level)
    for task in env.tasks('test'):
        messages, _ = env.reset(options={'task': task})
        _, (reward, terminated, truncated, info) = play(env, messages, lambda _: text)
        assert reward == info['outcome'] == 0.0 and not info['success']
        assert truncated and not terminated


@pytest.mark.parametrize('level', LEVELS)
def test_guessing_scores_next_to_nothing(level):
    assert random_success(level, copies=False) <= 0.005


@pytest.mark.parametrize(('level', 'low', 'high'), [(1, 0.01, 0.05), (2, 0.003, 0.05), (3, 0.0, 0.005)])
def test_random_legal_actions_succeed_rarely(level, low, high):
    assert low <= random_success(level, copies=True) <= high


def test_random_action_copies_what_the_talk_holds():
    env, _ = start()
    rng = random.Random(0)
    assert len({action for action in {env.random_action(rng) for _ in range(300)} if 'cancel_order' in action}) > 10
    env.step('Which order?')
    env.step('What is the reason?')
    drawn = {env.random_action(rng) for _ in range(300)}
    right = render('cancel_order', {'order': 'order_17', 'reason': 'delay'})
    assert {action for action in drawn if 'cancel_order' in action} == {right}
    assert {'Which order?', 'Which item?'} <= drawn and len(drawn) > 20  # what the talk does not hold, is any


def test_expert_asks_again_what_was_not_answered():
    env, _ = start(user_style='stubborn')
    asked = []
    for _ in range(3):
        asked.append(env.expert())
        env.step(asked[-1])
    assert asked == ['Which order?', 'Which order?', 'What is the reason?']
    assert env.step(env.expert())[4]['success']


def test_step_plays_the_literal_first_level():
    env, messages = start()
    assert messages[0]['role'] == 'system' and messages[1]['role'] == 'user'
    answer, reward, *ended, info = env.step('Which order?')
    assert answer[0]['role'] == 'user' and 'order_17' in answer[0]['content']
    assert (reward, ended, info) == (0.0, [False, False], {'is_error': False})
    assert 'delay' in env.step('What is the reason?')[0][0]['content']
    call = render('cancel_order', {'order': 'order_17', 'reason': 'delay'})
    answer, reward, terminated, _, info = env.step(call)
    assert answer[0] == {'role': 'tool', 'content': 'Cancelled order_17.'} and answer[1]['role'] == 'user'
    assert reward == 1.0 and terminated and info['success']


def test_step_ends_with_zero_after_a_wrong_change():
    env, _ = start()
    answer, reward, terminated, _, info = env.step(render('cancel_order', {'order': 'order_17', 'reason': 'price'}))
    assert terminated and reward == 0.0 and not info['success']
    assert answer[-1]['content'] == 'That is not what I want. Bye.'


@pytest.mark.parametrize(
    'text',
    ['<tool_call>', render('cancel', {}), render('get_order', {'order': 1}), render('get_order', {'order': 'x'})],
)
def test_step_answers_a_bad_call_with_an_error(text):
    env, messages = start()
    answer, reward, terminated, truncated, info = env.step(text)
    assert answer[0]['role'] == 'tool' and answer[0]['content'].startswith('Error: ')
    unknown = '"x"' in text  # an order that does not exist, asked for in good form
    assert info == {'is_error': True} | ({'malformed': False} if unknown else {})
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert play(env, messages, act)[1][3]['success']


def test_step_compares_the_database_with_the_gold_one():
    env, messages = start()
    env._gold = make(1, 'cancel_order order_17 price').gold
    _, (reward, terminated, _, info) = play(env, messages, act)
    assert terminated and reward == 0.0 and not info['success']


def test_step_truncates_without_success():
    env, _ = start(turn_limit=1)
    _, reward, terminated, truncated, info = env.step('Which order?')
    assert truncated and not terminated
    assert info == {'is_error': False, 'success': False, 'outcome': 0.0} and reward == 0.0


def test_step_needs_a_running_episode():
    for call in (lambda: Retail().step('hello'), Retail().expert, lambda: Retail().random_action(random.Random(0))):
        with pytest.raises(ValueError, match='call reset'):
            call()
    env, _ = start(turn_limit=1)
    env.step('hello')
    with pytest.raises(ValueError, match='call reset'):
        env.step('hello')


def test_level_three_needs_the_refund_told():
    task = f'{CANCEL} & {RETURN}'
    amount = f'{make(3, task).requests[1].refund}'
    for told, success in ((amount, True), ('$1', False)):
        env, messages = start(task, level=3)
        tell = lambda m, told=told: act(m).replace(amount, told) if 'refund is' in act(m) else act(m)  # noqa: E731
        _, (_, _, _, info) = play(env, messages, tell)
        assert info['success'] == success


def test_level_two_hides_a_fact_in_the_database():
    env, _ = start(level=2)
    answer = env.step('Which order?')[0][0]['content']
    assert 'cust_' in answer and 'order_17' not in answer
    env, _ = start(RETURN, level=2)
    assert 'item_' not in env.step('Which item?')[0][0]['content']


def test_reset_is_deterministic_and_seeds_change_only_wording():
    transcripts = []
    for seed in range(8):
        pair = [contents(play(*start(seed=seed), act)[0]) for _ in range(2)]
        assert pair[0] == pair[1]
        transcripts.append(tuple(pair[0]))
        assert render('cancel_order', {'order': 'order_17', 'reason': 'delay'}) in pair[0]
    assert len(set(transcripts)) > 3


def test_reset_forgets_the_last_episode():
    env = Retail()
    for _ in range(3):
        messages, _ = env.reset(options={'task': CANCEL})
        assert play(env, messages, act)[1][3]['success']


def test_reset_draws_a_training_task_by_default():
    env = Retail()
    tasks = {env.reset(seed=seed)[1]['task'] for seed in range(20)}
    assert len(tasks) > 5 and tasks <= set(env.tasks('train'))


def test_retail_knobs():
    assert Retail(level=2).max_turns == 8 and Retail(level=2, turn_limit=5).max_turns == 5
    full = Retail(brief=False).reset()[0][0]['content']
    assert len(full) > 1000 and 'get_customer' in full
    for knobs in ({'level': 4}, {'turn_limit': 0}):
        with pytest.raises(ValueError, match='must be'):
            Retail(**knobs)


def test_info_holds_the_schemas_of_six_tools():
    tools = Retail().reset()[1]['tools']
    assert len(tools) == 6 and all(tool['type'] == 'function' for tool in tools)
