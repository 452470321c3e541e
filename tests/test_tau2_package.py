"""tau2-bench: the real package, where it is installed.

Needs TAU2_PYTHON (an interpreter that has the package) and TAU2_DATA_DIR (its data); see envs/tau2.py.
``pytest -m slow tests/test_tau2_package.py`` replays every task.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import textwrap

import pytest
from dialogues import exchange
from endpoint import Endpoint, EndpointUser
from talk import tiny_chat

from infopo_jax.envs import remote
from infopo_jax.envs.tau2 import DOMAINS, Tau2
from infopo_jax.envs.tools import render
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.types import EndReason
from infopo_jax.users import UserFailed

PYTHON, DATA = os.environ.get('TAU2_PYTHON'), os.environ.get('TAU2_DATA_DIR')


@pytest.fixture(scope='module', autouse=True)
def end_interpreters():
    yield
    remote.close_all()


@pytest.fixture(scope='module')
def package():
    """Skips unless the real package and its data are there."""
    if not PYTHON or not DATA:
        pytest.skip('TAU2_PYTHON or TAU2_DATA_DIR is not set: no tau2-bench to test with, see infopo_jax/envs/tau2.py')
    found = subprocess.run([os.path.expanduser(PYTHON), '-c', 'import tau2.gym.gym_agent'], capture_output=True)
    if found.returncode or not (pathlib.Path(DATA) / 'tau2' / 'domains').is_dir():
        pytest.skip(f'no tau2-bench in {PYTHON}, or no data of it in {DATA}')


def scripted(number, request):
    """Plays a user who says little: asks for help, and leaves when the agent says that all is done."""
    return '###STOP###' if 'That is all' in (request['messages'][-1]['content'] or '') else 'Please help me.'


@pytest.fixture(scope='module')
def served(package):
    pytest.importorskip('httpx', reason="needs httpx: pip install 'infopo_jax[users]'")
    from infopo_jax.users.openai import OpenAIUser

    with Endpoint(scripted) as endpoint:
        yield OpenAIUser('tiny', base_url=endpoint.url, api_key_env='', retries=1)


def build(domain, served=None, **knobs):
    knobs = {'evaluation': 'env' if domain == 'retail' else 'all', 'call_timeout': 600.0, **knobs}
    return Tau2(domain, user=None if domain == 'telecom-solo' else served, **knobs)


def replay(env, task, *, without=None):
    """Plays a task's gold actions, all as the agent's, but for the one ``without``; returns the last info."""
    gold = env.gold(task)
    env.reset(options={'task': task})
    for number, (_, name, arguments) in enumerate(gold['actions']):
        if number != without:
            assert not env.step(render(name, arguments))[2]
    for text in [] if env.solo else gold['say']:
        env.step(text)
    return env.step(render('done', {}) if env.solo else 'That is all.')[4]


def all_tasks(env):
    return env.tasks('train') + env.tasks('test')


@pytest.mark.parametrize('domain', DOMAINS)
def test_tasks_are_the_packages_splits(package, domain):
    env = build(domain, EndpointUser())
    splits = json.loads((pathlib.Path(DATA) / f'tau2/domains/{env.domain}/split_tasks.json').read_text())
    assert env.tasks('train') == splits['train'] and env.tasks('test') == splits['test']
    assert not set(env.tasks('train')) & set(env.tasks('test'))
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('base')


@pytest.mark.parametrize('domain', DOMAINS)
def test_reset_shows_policy_tools_and_version(package, domain, request):
    env = build(domain, None if domain == 'telecom-solo' else request.getfixturevalue('served'))
    messages, info = env.reset(options={'task': env.tasks('test')[0]})
    assert [message['role'] for message in messages] == ['system', 'user']
    assert '<policy>' in messages[0]['content'] and len(messages[0]['content']) > 5000
    names = [tool['function']['name'] for tool in info['tools']]
    assert {'done', 'transfer_to_human_agents'} <= set(names) and len(set(names)) == len(names) > 10
    assert info['version'][0].isdigit()
    assert messages[1]['content'] == 'Please help me.' or (env.solo and 'ticket' in messages[0]['content'])
    env.close()


@pytest.mark.parametrize('domain', ['telecom-solo', 'retail', 'airline'])
def test_gold_actions_earn_everything_on_some_tasks(package, domain, request):
    env = build(domain, None if domain == 'telecom-solo' else request.getfixturevalue('served'))
    for task in random.Random(0).sample(all_tasks(env), 3):
        info = replay(env, task)
        assert info['success'] and info['outcome'] == 1.0, task
        assert info['reason'] == ('agent_stop' if env.solo else 'user_stop')


@pytest.mark.slow
@pytest.mark.parametrize(('domain', 'count'), [('telecom-solo', 114), ('retail', 114), ('airline', 50)])
def test_gold_actions_earn_everything_on_all_tasks(package, domain, count, request):
    served = None if domain == 'telecom-solo' else request.getfixturevalue('served')
    tasks = all_tasks(build(domain, served))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda task: replay(build(domain, served), task)['outcome'], tasks))
    assert outcomes == [1.0] * count


PLAIN = """
    import json, sys
    from loguru import logger
    logger.remove()
    from tau2.gym.gym_agent import AgentGymEnv
    rewards = []
    for task, actions in json.load(sys.stdin):
        env = AgentGymEnv(domain='telecom', task_id=task, max_steps=200, solo_mode=True)
        env.reset()
        for action in [*actions, '{"name": "done", "arguments": {}}']:
            reward = env.step(action)[1]
        rewards.append(reward)
    print('rewards', json.dumps(rewards))
"""


def package_rewards(runs):
    """Returns what the package itself gives for [(task, actions), ...], without any of our code."""
    command = [os.path.expanduser(PYTHON), '-c', textwrap.dedent(PLAIN)]
    out = subprocess.run(command, input=json.dumps(runs), capture_output=True, text=True, check=True).stdout
    return json.loads(out.partition('rewards')[2])


def check_drops(tasks):
    env, runs, ours = build('telecom-solo'), [], []
    for task in tasks:
        actions = env.gold(task)['actions']
        for without in range(len(actions)):
            kept = [json.dumps({'name': n, 'arguments': a}) for i, (_, n, a) in enumerate(actions) if i != without]
            runs.append((task, kept))
            ours.append(replay(env, task, without=without)['outcome'])
    assert ours == package_rewards(runs) and 0.0 in ours
    return ours


def test_a_dropped_action_earns_what_the_package_gives(package):
    check_drops(random.Random(1).sample(all_tasks(build('telecom-solo')), 2))


@pytest.mark.slow
def test_every_dropped_action_earns_what_the_package_gives(package):
    check_drops(random.Random(2).sample(all_tasks(build('telecom-solo')), 20))


@pytest.mark.parametrize(
    'text',
    ["find_user_id_by_email(email='a@b.c')", '{"name": "no_such_tool", "arguments": {}}', 'Sure (ok)', 'done()'],
)
def test_text_is_said_to_the_user_whatever_it_looks_like(served, text):
    env = build('retail', served)
    env.reset(options={'task': env.tasks('test')[0]})
    messages, _, terminated, _, info = env.step(text)
    assert messages == [{'role': 'user', 'content': 'Please help me.'}] and not terminated and not info['is_error']
    env.close()


def test_doing_nothing_and_ten_errors_score_zero(package):
    env = build('telecom-solo')
    task = env.tasks('train')[0]
    env.reset(options={'task': task})
    assert env.step(render('done', {}))[4]['outcome'] == 0.0
    env.reset(options={'task': task})
    for _ in range(10):
        messages, _, terminated, _, info = env.step(render('get_customer_by_phone', {'phone_number': '0'}))
        assert terminated or (info['is_error'] and 'not found' in messages[0]['content'])
    assert terminated and info['reason'] == 'too_many_errors' and info['outcome'] == 0.0


SLOW_COPY = """
    import importlib.util, sys, time
    spec = importlib.util.spec_from_file_location('tau2_worker', {worker!r})
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    quick = worker.gym_agent.deepcopy

    def slow(value):
        time.sleep(0.05)
        return quick(value)

    worker.gym_agent.deepcopy = slow
    Simulation = worker.Simulation
"""


def test_an_observation_is_never_the_one_before(package, tmp_path):
    """The package announces the agent's turn before it has stored the observation, which it copies in between."""
    worker = pathlib.Path(remote.__file__).with_name('tau2_worker.py')
    (tmp_path / 'slow.py').write_text(textwrap.dedent(SLOW_COPY.format(worker=str(worker))))
    knobs = {'domain': 'telecom', 'solo': True, 'evaluation': 'all', 'max_steps': 200, 'user': {}, 'judge': None}
    env = remote.RemoteEnv(PYTHON, f'{tmp_path / "slow.py"}:Simulation', knobs, timeout=600.0)
    env.call('reset', task=env.tasks('train')[0], seed=0)
    for phone in ('1', '2', '3'):
        call = {'call': {'name': 'get_customer_by_phone', 'arguments': {'phone_number': phone}}}
        assert env.call('step', action=call)['content'] == f'Error: Customer with phone number {phone} not found'
    env.close()


def test_an_episode_broken_off_leaves_no_process(package):
    env = build('telecom-solo')
    pids = []
    for _ in range(3):
        env.reset(options={'task': env.tasks('train')[0]})
        pids.append(env._remote.call('step', action='{"name": "get_data_usage", "arguments": {}}') and process_of(env))
    env.close()
    assert len(set(pids)) == 3 and not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)


def process_of(env):
    """Returns the process id of an environment's child."""
    parent = env._remote._interpreter._process.pid
    children = pathlib.Path(f'/proc/{parent}/task/{parent}/children').read_text().split()
    return max(map(int, children))


def test_unknown_task_and_missing_data_are_the_callers(package, tmp_path):
    with pytest.raises(ValueError, match="unknown task 'no such'"):
        build('telecom-solo').reset(options={'task': 'no such'})
    with pytest.raises(ValueError, match=r"no data of domain 'telecom' in .*config.env.data_dir \(or TAU2_DATA_DIR\)"):
        build('telecom-solo', data_dir=str(tmp_path)).tasks('train')


@pytest.mark.parametrize('answer', [(500, {}, 'bad key sk-secret-key'), (200, {}, '{"choices": ['), 'DROP'], ids=str)
def test_a_failing_model_is_a_failed_user_not_a_zero(package, monkeypatch, answer):
    """The package itself ends such a talk with a reward of 0, and says nothing."""
    pytest.importorskip('httpx', reason="needs httpx: pip install 'infopo_jax[users]'")
    from infopo_jax.users.openai import OpenAIUser

    monkeypatch.setenv('TAU2_TEST_KEY', 'sk-secret-key')
    with Endpoint(scripted) as endpoint:
        user = OpenAIUser('tiny', base_url=endpoint.url, api_key_env='TAU2_TEST_KEY', retries=0, timeout=300.0)
        env = build('retail', user, data_dir=DATA)
        chat = tiny_chat()
        dialogue = Dialogue(
            chat, Limits(9, 200_000, 199_000, 99, 99, 2), env.tasks('test')[0], group=0, member=0, seed=0
        )
        exchange(dialogue, env)
        assert not dialogue.ended, dialogue.error_text
        assert endpoint.headers[0]['authorization'] == 'Bearer sk-secret-key'
        dialogue.take(200_000)
        endpoint.plan = lambda *_: answer
        ids = [*chat.encode('Hi.'), chat.stop_id]
        dialogue.hear(ids, [0.0] * len(ids))
        exchange(dialogue)
    assert (dialogue.end_reason, dialogue.valid) == (EndReason.USER_ERROR, False), dialogue.error_text
    assert 'sk-secret-key' not in dialogue.error_text
    assert issubclass(UserFailed, RuntimeError)
