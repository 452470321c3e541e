"""tau2-bench, inside the interpreter in which it is installed; ``remote_worker.py`` serves it to ``tau2.py``.

One ``Simulation`` plays one episode through the package's own Gymnasium environment and scores it by the package's own
evaluation. Checked against version 1.0.1 (commit a2c0247 of github.com/sierra-research/tau2-bench).
"""

import importlib.metadata
import json
import os
import sys

os.environ.setdefault('LITELLM_LOCAL_MODEL_COST_MAP', 'True')  # no look-up in the network at import

try:
    from loguru import logger

    logger.remove()  # it tells of every message
    from tau2.agent import llm_agent
    from tau2.data_model.message import AssistantMessage
    from tau2.data_model.simulation import SimulationRun
    from tau2.evaluator import evaluator_nl_assertions as judge_module
    from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation
    from tau2.gym import gym_agent
    from tau2.registry import registry
    from tau2.utils.utils import DATA_DIR
except ImportError as error:
    wrong = 'tau2' in sys.modules and 'tau2.config' not in sys.modules
    raise ImportError(f'another package named tau2 is installed there: {error}' if wrong else str(error)) from error

STOP = '{"name": "done", "arguments": {}}'


class UserFailed(RuntimeError):
    """The language model that plays the user gave no answer; raised under this name on the other side."""


class _Env(gym_agent.AgentGymEnv):
    """The package's environment without its scoring at every step, which would also score a talk that we break off."""

    def _get_reward(self):
        return 0.0, '{}'


def _wait_for_observations():
    """Makes the package's agent have its turn when it has its observation.

    The package says that it is the agent's turn before it stores what the agent is to see; its environment, which looks
    on from another thread, may then return the observation before that. Both happen under one lock.
    """
    unguarded = gym_agent.GymAgent.is_agent_turn.fget

    def is_agent_turn(agent):
        with agent._lock:
            return unguarded(agent)

    gym_agent.GymAgent.is_agent_turn = property(is_agent_turn)


def _read_actions():
    """Makes the package read actions as ``Simulation.step`` writes them; by itself it finds calls in plain text."""
    parse = gym_agent.parse_action_string

    def read(action):
        said = json.loads(action)
        if 'text' in said:
            return AssistantMessage(role='assistant', content=said['text'])
        return parse(json.dumps(said['call']))

    gym_agent.parse_action_string = read


_PATCHED = [
    (gym_agent.AgentGymEnv, '_get_reward'),
    (gym_agent.GymAgent, 'is_agent_turn'),
    (gym_agent, 'parse_action_string'),
]
if not all(name in vars(owner) for owner, name in _PATCHED):
    raise ImportError(f'tau2 {importlib.metadata.version("tau2")} plays in another way than 1.0.1; install that one')
_wait_for_observations()
_read_actions()


class Simulation:
    """One episode of one task.

    Args:
        domain: 'airline', 'retail', 'telecom' or 'mock'.
        solo: the agent has the user's tools and a ticket, and there is no user.
        evaluation: 'all', the package's; 'env' leaves out what a language model would have to judge.
        max_steps: of the package's orchestrator.
        user: {'model', 'base_url', 'api_key_env', 'temperature', 'timeout', 'retries', 'patience'} of the language
            model that plays the user; absent ones are left to the package and litellm.
        judge: name of the language model that judges; None is the package's.
    """

    def __init__(self, domain, solo, evaluation, max_steps, user, judge):
        if not (DATA_DIR / 'tau2' / 'domains' / domain).is_dir():
            raise FileNotFoundError(f'no data of domain {domain!r} in {DATA_DIR}')
        self.domain, self.solo, self.max_steps = domain, solo, max_steps
        self.evaluation = EvaluationType(evaluation)
        self.user_llm, self.user_args = _user(user)
        if judge:
            judge_module.DEFAULT_LLM_NL_ASSERTIONS = judge
        self.errors = []
        logger.add(lambda message: self.errors.append(message.record['message']), level='ERROR')

    def tasks(self, split):
        """Returns the ids of the package's own split."""
        splits = registry.get_task_splits_loader(self.domain)()
        return splits[split]

    def gold(self, task):
        """Returns a task's solution, for checks: actions as [requestor, name, arguments], and what to say."""
        criteria = self._task(task).evaluation_criteria
        actions = [[action.requestor, action.name, action.arguments] for action in criteria.actions or []]
        return {'actions': actions, 'say': list(criteria.communicate_info or [])}

    def reset(self, task, seed):
        """Starts a task; returns the opening as messages, and policy and tools."""
        self.task = self._task(task)
        args = self.user_args | ({} if self.solo else {'seed': seed})
        self.env = _Env(
            domain=self.domain,
            task_id=task,
            max_steps=self.max_steps,
            solo_mode=self.solo,
            user_llm=self.user_llm,
            user_llm_args=args,
        )
        observation, info = self.env.reset()
        if not self.solo and not observation:
            self._check(info)
            raise UserFailed('the user ended the talk before the agent could speak')
        opening = self.task.ticket if self.solo else _split(observation)[1]
        system = llm_agent.SYSTEM_PROMPT.format(agent_instruction=_instruction(self.solo), domain_policy=info['policy'])
        return {
            'messages': [{'role': 'system', 'content': system}, {'role': 'user', 'content': opening}],
            'tools': [tool.openai_schema for tool in info['tools']],
            'version': importlib.metadata.version('tau2'),
        }

    def step(self, action):
        """Carries out {'text': what is said} or {'call': {'name', 'arguments'}}.

        Returns the answer, and the score once the episode has ended.
        """
        observation, _, terminated, _, info = self.env.step(json.dumps(action))
        role, content = _split(observation)
        answer = {'role': role, 'content': content, 'terminated': terminated}
        if terminated:
            self._check(info)
            answer |= self._score(SimulationRun.model_validate_json(info['simulation_run']))
        return answer

    def _score(self, run):
        """Has the package score a run."""
        try:
            result = evaluate_simulation(run, self.task, self.evaluation, self.solo, self.domain)
        except Exception as error:
            raise RuntimeError(_redact(f'the evaluation failed: {error}')) from None
        parts = result.reward_breakdown or {}
        return {
            'reward': result.reward,
            'parts': {getattr(part, 'value', str(part)): value for part, value in parts.items()},
            'reason': run.termination_reason.value,
            'user_cost': run.user_cost,
        }

    def _check(self, info):
        """Raises what the package has swallowed: it ends a talk whose user fails with a reward of 0."""
        run = json.loads(info['simulation_run'])
        if run and run['termination_reason'] not in ('user_error', 'infrastructure_error', 'unexpected_error'):
            return
        broken = [error for error in self.errors if 'rchestrator error' in error]  # others are no more than warnings
        told = _redact(broken[-1] if broken else f'the package gives no reason: {run}')
        raise (RuntimeError if self.solo else UserFailed)(told)  # tools' errors are answers; only users break a talk

    def _task(self, task):
        for candidate in registry.get_tasks_loader(self.domain)():
            if candidate.id == task:
                return candidate
        raise ValueError(f'unknown task {task!r} of domain {self.domain!r}; take one of env.tasks("train")')


def _user(user):
    """Returns model and arguments for litellm; the key stays in the environment, out of what the package records."""
    timeout, patience = user.get('timeout'), user.get('patience')
    if patience is not None:  # all tries together end within it
        timeout = min(timeout or patience, patience / (1 + (user.get('retries') or 0)))
    args = {
        'temperature': user.get('temperature', 0.0),
        'api_base': user.get('base_url'),
        'timeout': timeout,
        'num_retries': user.get('retries'),
        'drop_params': True,  # such as a seed, of which a provider knows nothing
    }
    if user.get('base_url'):
        # A judge is asked at the same place: a key goes nowhere else than to the endpoint that it is for.
        os.environ['OPENAI_API_BASE'] = os.environ['OPENAI_BASE_URL'] = user['base_url']
    key = user.get('api_key_env')
    if key is not None:
        os.environ['OPENAI_API_KEY'] = os.environ.get(key, '') or 'none'
    model = f'openai/{user["model"]}' if user else None  # litellm: whoever speaks OpenAI's protocol at api_base
    return model, {name: value for name, value in args.items() if value is not None}


def _instruction(solo):
    if not solo:
        return llm_agent.AGENT_INSTRUCTION
    return llm_agent.AGENT_SOLO_INSTRUCTION.format(stop_function_name='done', stop_token='###STOP###')


def _split(observation):
    """Returns role and content of an observation 'role: content'."""
    role, _, content = observation.partition(': ')
    return role, content


def _redact(text):
    """Returns a text without the key, which some endpoints repeat."""
    key = os.environ.get('OPENAI_API_KEY')
    return text.replace(key, '***') if key else text
