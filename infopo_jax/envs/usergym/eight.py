"""UserRL's eight gyms: where each is found, how an episode is set up, what counts as won, how a failed judge shows.

Written against github.com/SalesforceAIResearch/UserRL at cf55a30 (September 2025). Its environments answer
"[action] ...", "[answer] ...", "[search] ..." and "[finish]" with obs['feedback'] and a reward per turn; all but
FunctionGym ask a language model, and where that fails most go on with canned text and reward 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

ERRORS = (  # how replies begin that only say that a move was malformed
    'Error', 'Invalid', 'Please provide', 'Answer is empty', 'Search content should only', 'This is the test case',
)  # fmt: skip

Failure = Callable[[Any, str, dict], bool]  # environment, feedback, info -> whether its language model failed


def _flagged(env: Any, feedback: str, info: dict) -> bool:
    return info.get('judge_success') is False


def _intention_failed(env: Any, feedback: str, info: dict) -> bool:
    method = (info.get('reward_breakdown') or {}).get('method')
    canned = (
        "That's an interesting question. Let me think about that.",
        "Good point! I hadn't considered that aspect.",
        'Thanks for asking - that helps me clarify what I need.',
        "That's definitely something I should specify.",
        'I appreciate you helping me think through this.',
    )
    return feedback in canned or method in ('fallback', 'json_parse_error', 'plain_text')


def _travel_failed(env: Any, feedback: str, info: dict) -> bool:
    """Every n-th search fails on purpose, with the same text as a real failure; the notes of a talk tell of others."""
    if feedback.startswith('Currently the searching backend is experiencing some issues'):
        return env.state_list['search_times'] % env.config.search_failure_interval != 0
    notes = ' '.join(str(entry.get('note', '')) for entry in info.get('conversation_history', ())[-2:])
    return 'failed due to some issues' in notes or 'Responding system met some issues' in notes


def _search_failed(env: Any, feedback: str, info: dict) -> bool:
    return feedback.startswith(('Unable to evaluate your answer', 'Search Error', 'Error processing action'))


def _tau_failed(env: Any, feedback: str, info: dict) -> bool:
    return feedback.startswith(('Error communicating with user', 'Error executing action'))


@dataclasses.dataclass(frozen=True)
class Spec:
    """One gym.

    ``key`` is the field of its data that names a task. Where the data has no prompt, ``rules`` are the system message
    and ``intro`` the fields of the first observation that the agent is shown.
    """

    module: str
    env: str
    key: str
    choices: tuple[str, ...]
    rules: str
    won: Callable[[Any], bool]
    failed: Failure = _flagged
    intro: tuple[str, ...] = ('feedback',)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of its config, as UserRL trains with
    outcome_range: float = 1.0
    needs_model: bool = True


_CALL = 'Call interact_with_env in every turn. Choices: '
EIGHT: dict[str, Spec] = {
    'FunctionGym': Spec(
        'functiongym', 'FunctionEnv', 'id', ('action', 'search', 'answer'),
        'Find a hidden function of four numbers and apply it to the test case. ' + _CALL
        + 'search (content "test": shows the test case), action (four numbers: the value of the function), answer (the '
        'value for the test case).',
        lambda env: env.answered_correctly, failed=lambda *_: False, needs_model=False,
    ),
    'TelepathyGym': Spec(
        'telepathygym', 'TelepathyEnv', 'title', ('action', 'answer'),
        'Find what the user thinks of. ' + _CALL + 'action (a yes/no question), answer (what it is).',
        lambda env: env.guessed, intro=('description', 'goal'),
    ),
    'TurtleGym': Spec(
        'turtlegym', 'StoryEnv', 'title', ('action', 'answer'),
        'Find the story behind a scene. ' + _CALL + 'action (a yes/no question), answer (the whole story).',
        lambda env: env.best_score >= env.config.success_threshold, intro=('story_title', 'story_text', 'goal'),
        settings={'success_threshold': 1.0 - 1e-6},  # weights of covered criteria add up to 1 but for rounding
    ),
    'PersuadeGym': Spec(
        'persuadegym', 'PersuadeEnv', 'id', ('action',),
        'Change the mind of the user about a claim. ' + _CALL + 'action (an argument).',
        lambda env: env.current_stance == 'Strongly Disagree',
    ),
    'IntentionGym': Spec(
        'intentiongym', 'IntentionEnv', 'id', ('action',),
        'Find out all details that a vague task leaves open, one at a time. ' + _CALL + 'action (a question).',
        lambda env: not env.remaining_missing_details, failed=_intention_failed,
        intro=('task_category', 'task_description', 'goal'), outcome_range=3.0,
    ),
    'TravelGym': Spec(
        'travelgym', 'TravelEnv', 'id', ('action', 'search', 'answer'),
        'Plan a trip to the preferences of the user. ' + _CALL
        + 'action (a question about one preference), search (a request with all arguments for one kind of option), '
        'answer (the id of one option).',
        lambda env: not env.state_list['remaining_best_options'], failed=_travel_failed,
        intro=('task_description', 'goal', 'feedback'), outcome_range=4.0,
        settings={'one_choice_per_aspect': True, 'search_correct_reward': 0.0, 'preference_correct_reward': 0.8},
    ),
    'SearchGym': Spec(
        'searchgym', 'SearchEnv', 'id', ('search', 'answer'),
        'Answer a question with the help of a web search. ' + _CALL + 'search (a query), answer (the answer).',
        lambda env: env.answered_correctly, failed=_search_failed, intro=('question',), settings={'eval_method': 'llm'},
    ),
    'TauGym': Spec(
        'taugym', 'TauEnv', 'id', ('action', 'search', 'answer'),
        'Serve a customer by the tools of a shop or an airline. ' + _CALL
        + 'search (content "tools": lists them), action (a message to the customer), answer (a tool call as JSON with '
        'name and arguments).',
        lambda env: env.total_reward >= 1.0, failed=_tau_failed,
    ),
}  # fmt: skip
