"""Tests of the retail world: tools, tasks, the user, episodes, and what is taught."""

import random

import pytest

from infopo_jax.envs.retail import Retail, database as data, teach
from infopo_jax.envs.retail.expert import act
from infopo_jax.envs.retail.tasks import LEVELS, Request, make
from infopo_jax.envs.retail.tools import SCHEMAS, execute
from infopo_jax.envs.retail.user import User, asked
from infopo_jax.envs.tools import parse, render

CANCEL = 'cancel_order order_17 delay'
RETURN = 'return_item order_3 item_5'


def start(task=CANCEL, *, level=1, seed=0, **knobs):
    """Returns an environment in the first turn of a task."""
    env = Retail(level, **knobs)
    messages, _ = env.reset(seed=seed, options={'task': task})
    return env, messages


def play(env, messages, policy):
    """Plays to the end; returns the messages and the last step's result."""
    while True:
        action = policy(messages)
        answer, reward, terminated, truncated, info = env.step(action)
        messages = [*messages, {'role': 'assistant', 'content': action}, *answer]
        if terminated or truncated:
            return messages, (reward, terminated, truncated, info)


def contents(messages):
    return [message['content'] for message in messages]


def random_success(level, *, copies, episodes=2000):
    """Returns the success rate of uniformly random legal actions, with known arguments copied or all at random."""
    env, rng, wins = Retail(level), random.Random(0), 0
    tasks = env.tasks('train')
    for seed in range(episodes):
        known = {}
        env.reset(seed=seed, options={'task': rng.choice(tasks)})
        ended = False
        while not ended:
            action = teach.random_action(rng, rng.choice(teach.KINDS[level]), known if copies else {})
            answer, _, terminated, truncated, info = env.step(action)
            for message in answer:
                for argument, value in teach.values(message, action):
                    known.setdefault(argument, []).append(value)
            ended = terminated or truncated
        wins += info['success']
    return wins / episodes


# Tools


def shop():
    """A shop whose ids stand in their own sequence: customer c owns orders 2c (pending) and 2c + 1 (delivered)."""
    layout = data.Layout(list(data.CUSTOMERS), list(data.ORDERS), list(data.ITEMS), list(data.PAYMENTS))
    return data.build(random.Random(0), layout)


def test_build_gives_each_customer_a_pending_and_a_delivered_order():
    db = shop()
    assert db.customers['cust_1'] == {'orders': ('order_2', 'order_3'), 'payments': ('pay_2', 'pay_3')}
    assert db.orders['order_2'] | {'items': sorted(db.orders['order_2']['items'])} == {
        'customer': 'cust_1',
        'status': 'pending',
        'items': ['item_4', 'item_5'],
        'payment': 'pay_3',
    }
    assert db.orders['order_3']['status'] == 'delivered' and db.orders['order_3']['payment'] in ('pay_2', 'pay_3')
    for record in db.orders.values():
        assert len({db.items[item]['product'] for item in record['items']}) == 2
        assert db.payments[record['payment']] == record['customer']


def test_shuffle_puts_fixed_names_in_their_slots():
    for seed in range(50):
        slots = data.shuffle(random.Random(seed), data.ORDERS, {0: 'order_5', 1: 'order_0', 4: 'order_1'})
        assert (slots[0], slots[1], slots[4]) == ('order_5', 'order_0', 'order_1')
        assert sorted(slots) == sorted(data.ORDERS)


@pytest.mark.parametrize(
    ('name', 'values', 'changes'),
    [
        ('cancel_order', 'order_2 delay', {'status': 'cancelled', 'reason': 'delay'}),
        ('change_payment', 'order_2 pay_2', {'payment': 'pay_2'}),
        ('return_item', 'order_3 item_6', {'items': ('item_7',), 'returned': 'item_6'}),
    ],
)
def test_execute_changes_only_the_order(name, values, changes):
    db, before = shop(), shop()
    keys = next(s['function']['parameters']['required'] for s in SCHEMAS if s['function']['name'] == name)
    arguments = dict(zip(keys, values.split(), strict=True))
    snapshot = db.copy()
    result = execute(db, name, arguments)
    assert result.changed and not result.is_error
    expected = before.orders | {arguments['order']: before.orders[arguments['order']] | changes}
    assert db.orders == expected
    assert snapshot == before  # the copy does not see the change


def test_execute_exchanges_in_place():
    db = shop()
    before = db.orders['order_3']['items']
    assert execute(db, 'exchange_item', {'order': 'order_3', 'item': 'item_6', 'new_item': 'item_0'}).changed
    assert db.orders['order_3']['items'] == tuple('item_0' if item == 'item_6' else item for item in before)


@pytest.mark.parametrize(
    ('name', 'arguments', 'error'),
    [
        ('get_customer', {'customer': 'cust_99'}, 'no such customer'),
        ('get_order', {'order': 'x'}, 'no such order'),
        ('cancel_order', {'order': 'order_3', 'reason': 'delay'}, 'the order is not pending'),
        ('change_payment', {'order': 'order_2', 'payment': 'pay_4'}, 'not a payment of this customer'),
        ('change_payment', {'order': 'order_2', 'payment': 'pay_3'}, 'already paid that way'),
        ('return_item', {'order': 'order_2', 'item': 'item_4'}, 'the order is not delivered'),
        ('return_item', {'order': 'order_3', 'item': 'item_0'}, 'no such item in the order'),
        ('exchange_item', {'order': 'order_3', 'item': 'item_6', 'new_item': 'item_7'}, 'not a new item'),
    ],
)
def test_execute_refuses_without_a_change(name, arguments, error):
    db = shop()
    result = execute(db, name, arguments)
    assert result.is_error and error in result.text
    assert db == shop()


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


# The user


REFUND = Request('return_item', {'order': 'order_3'}, {'order': ('order', 'order_3')}, refund='$40')
PLAIN = Request('cancel_order', {'order': 'order_1'}, {'order': ('order', 'order_1'), 'reason': ('reason', 'delay')})


def user(*requests, states_intent=True):
    return User(requests, random.Random(0), states_intent=states_intent)


@pytest.mark.parametrize(
    ('text', 'facts'),
    [
        ('Which order?', ['order']),
        ('May I have your ORDER id?', ['order']),
        ('Why do you want to cancel it?', ['reason']),
        ('For which order, and what is the reason?', ['order', 'reason']),
        ('Which new item?', ['new_item']),
        ('Which item do you want instead?', ['new_item']),
        ('How would you like to pay?', ['payment']),
        ('Who are you?', ['customer']),
        ('How can I help?', ['intent']),
        ('Bananas.', []),
    ],
)
def test_asked_reads_keywords(text, facts):
    assert asked(text) == facts


def test_user_answers_once_and_then_says_that_he_has_answered():
    customer = user(PLAIN)
    customer.open()
    assert 'order_1' in customer.hear('Which order?')
    again = customer.hear('Which order?')
    assert 'order_1' in again and 'said' in again
    assert 'delay' in customer.hear('Which order, and why?')  # the question that is still open
    assert not customer.done


def test_user_does_not_understand_and_goes_on():
    customer = user(PLAIN)
    assert customer.hear('') in ('I do not understand.', 'What do you mean?')
    assert not customer.done


def test_user_goes_on_to_the_next_request_and_stops_when_done():
    customer = user(PLAIN, REFUND, states_intent=False)
    assert customer.open().startswith('Hello') and 'cancel' in customer.hear('How can I help?')
    assert 'refund' in customer.notice('cancel_order', {'order': 'order_1'})
    assert customer.notice('return_item', {'order': 'order_3'}) is None and not customer.done
    assert customer.hear('Your refund is $40.').startswith('Thank you') and customer.done and customer.content


@pytest.mark.parametrize('text', ['Your refund is $45.', 'It is $40 or $45.'])
def test_user_leaves_when_told_another_amount(text):
    customer = user(REFUND)
    customer.notice('return_item', {'order': 'order_3'})
    customer.hear(text)
    assert customer.done and not customer.content


def test_user_leaves_when_the_amount_is_told_before_the_change():
    customer = user(REFUND)
    customer.hear('$40')
    assert customer.done and not customer.content


# Episodes


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_expert_solves_every_task(level, split):
    env = Retail(level)
    for seed, task in enumerate(env.tasks(split)):
        messages, _ = env.reset(seed=seed, options={'task': task})
        messages, (reward, terminated, truncated, info) = play(env, messages, act)
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
    assert info == {'is_error': True} and (reward, terminated, truncated) == (0.0, False, False)
    assert play(env, messages, act)[1][3]['success']


def test_step_compares_the_database_with_the_gold_one():
    env, messages = start()
    env._gold = make(1, 'cancel_order order_17 price').gold
    _, (reward, terminated, _, info) = play(env, messages, act)
    assert terminated and reward == 0.0 and not info['success']


def test_step_truncates_without_success():
    env, _ = start(max_turns=1)
    _, reward, terminated, truncated, info = env.step('Which order?')
    assert truncated and not terminated
    assert info == {'is_error': False, 'success': False, 'outcome': 0.0} and reward == 0.0


def test_step_needs_a_running_episode():
    with pytest.raises(ValueError, match='call reset'):
        Retail().step('hello')
    env, _ = start(max_turns=1)
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
    assert Retail(level=2).max_turns == 8
    full = Retail(brief=False).reset()[0][0]['content']
    assert len(full) > 1000 and 'get_customer' in full
    for knobs in ({'level': 4}, {'max_turns': 0}):
        with pytest.raises(ValueError, match='must be'):
            Retail(**knobs)


def test_info_holds_the_schemas_of_six_tools():
    tools = Retail().reset()[1]['tools']
    assert len(tools) == 6 and all(tool['type'] == 'function' for tool in tools)


# What is taught


class Recorder(Retail):
    """Remembers how its last episode started."""

    def reset(self, *, seed=0, options=None):
        self.start = {'seed': seed, 'options': options}
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize('level', LEVELS)
def test_example_is_legal_and_never_a_solved_episode(level):
    env, rng = Recorder(level), random.Random(0)
    train = set(env.tasks('train'))
    for _ in range(1000):
        history, target = teach.example(env, rng)
        assert parse(target, SCHEMAS).error is None
        assert env.start['options']['task'] in train
        shown = {value for m in history if m['role'] != 'assistant' for _, value in teach.values(m)}
        needed = {word for goal in env.start['options']['task'].split(' & ') for word in goal.split()[1:]}
        assert not needed <= shown
        replay = Retail(level)
        replay.reset(**env.start)
        actions = [message['content'] for message in history if message['role'] == 'assistant']
        for action in [*actions, target]:
            _, _, _, _, info = replay.step(action)
        assert not info.get('success')


def test_example_copies_what_the_history_shows():
    env, rng = Retail(), random.Random(0)
    copied = drawn = hidden = two = 0
    for _ in range(2000):
        history, target = env.example(rng)
        seen = {value for message in history[1:] if message['role'] != 'assistant' for value in teach.values(message)}
        shown = {value for _, value in seen}
        hidden += env.placeholder in contents(history)
        arguments = list(parse(target, SCHEMAS).arguments.values())
        copied += sum(value in shown for value in arguments)
        two += len(arguments) > 1 and set(arguments) <= shown
        drawn += len(arguments)
    assert copied == drawn > 500
    assert two > 100  # calls of which every argument is copied
    assert 500 < hidden < 1400


def test_example_leaves_a_running_episode_alone():
    env, messages = start()
    env.example(random.Random(0))
    env.corpus()
    assert play(env, messages, act)[1][3]['success']


def test_values_tells_a_new_item_from_an_item():
    message = {'role': 'user', 'content': 'I want item_3 instead, because of the delay, for $40.'}
    assert teach.values(message) == [('item', 'item_3'), ('reason', 'delay'), ('refund', '$40')]
    assert teach.values(message, 'Which new item?')[0] == ('new_item', 'item_3')
