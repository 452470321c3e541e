"""What a model that knows no English is taught before training: words, syntax and copying, never what to ask when."""

import random

from infopo_jax.envs.colbench.functions import ASKS, POOLS, Function, by_name, slots
from infopo_jax.envs.colbench.tasks import Task, goals, read
from infopo_jax.envs.colbench.user import ScriptedUser
from infopo_jax.envs.text import Message

_TARGET_ASK_SHARE = 0.3
_HIDE = 0.15  # share of answers that show the placeholder
_KNOWS = 0.85  # share of what a function does not need, on which the collaborator has an answer all the same
_REPEAT = 0.1  # share of questions that were asked before
_REPEATS = 40  # in the corpus, of texts that would be rare in it


def special_tokens(level: int) -> list[str]:
    """Returns the values of slots and the fixed parts of answers: an answer is then a handful of tokens."""
    words = [value for slot in slots(level) for value in POOLS[slot]]
    pieces = [piece for function in by_name(level).values() for piece in function.pieces()]
    return [*words, *dict.fromkeys(pieces)]


def random_action(rng: random.Random, level: int) -> str:
    """Draws a legal action uniformly: one of the questions, or one of the functions with random values."""
    kind = rng.choice([*slots(level), *by_name(level)])
    if kind in ASKS:
        return ASKS[kind]
    function = by_name(level)[kind]
    return function.answer({slot: rng.choice(POOLS[slot]) for slot in function.slots})


def example(level: int, rng: random.Random, *, system: str, placeholder: str) -> tuple[list[Message], str]:
    """Draws one transition: random questions to a collaborator of a training task, then one random action.

    The answer that would complete what the task needs shows the placeholder, so no example is a solved episode. For
    practice in copying, the collaborator of an example also has answers that his task does not need, so that any
    function can be written with what was said. Which one is written has nothing to do with the task; if it is the
    wanted one, its missing slot gets a wrong value.

    Args:
        level: of the functions.
        rng: the source of all randomness.
        system: the system prompt. placeholder: what hides an answer.

    Returns:
        history: messages.
        target: a question, or a function whose slots are copied from the history.
    """
    wanted, values = read(level, rng.choice(goals(level)['train']))

    def talk():
        return _talk(level, rng, wanted, values, system=system, placeholder=placeholder)

    if rng.random() < _TARGET_ASK_SHARE:
        return talk()[0], ASKS[rng.choice(slots(level))]
    function = rng.choice(list(by_name(level).values()))
    while True:
        messages, known = talk()
        missing = [slot for slot in function.slots if slot not in known]
        if function is wanted and len(missing) == 1:
            known[missing[0]] = rng.choice([value for value in POOLS[missing[0]] if value != values[missing[0]]])
        elif missing:  # more made-up values would be noise, which drowns the little that there is to copy
            continue
        return messages, function.answer({slot: known[slot] for slot in function.slots})


def _talk(
    level: int,
    rng: random.Random,
    wanted: Function,
    values: dict[str, str],
    *,
    system: str,
    placeholder: str,
) -> tuple[list[Message], dict[str, str]]:
    """Plays random questions about a task; returns the messages, and what they make known by slot."""
    answers = {s: values.get(s) or rng.choice(POOLS[s]) for s in slots(level) if s in values or rng.random() < _KNOWS}
    user = ScriptedUser(Task(wanted.openings, '', (), answers=answers), rng)
    messages = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user.open()}]
    known: dict[str, str] = {}
    asked: list[str] = []
    for _ in range(rng.randint(0, len(slots(level)) + 1)):
        fresh = [slot for slot in slots(level) if slot not in asked]
        slot = rng.choice(asked if asked and (not fresh or rng.random() < _REPEAT) else fresh)
        asked.append(slot)
        reply = user.hear(ASKS[slot])
        if set(wanted.slots) <= {*known, slot} or rng.random() < _HIDE:
            reply = placeholder
        elif slot in answers:
            known[slot] = answers[slot]
        messages += [{'role': 'assistant', 'content': ASKS[slot]}, {'role': 'user', 'content': reply}]
    return messages, known


def corpus(level: int, *, system: str, placeholder: str, errors: list[str], count: int = 600) -> list[str]:
    """Returns what an agent meets or writes on training tasks: random talks, error messages, prompt, placeholder."""
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(count):
        history, target = example(level, rng, system=system, placeholder=placeholder)
        texts += [message['content'] for message in history] + [target]
    rare = [*errors, *(opening for function in by_name(level).values() for opening in function.openings)]
    return [*texts, *rare * _REPEATS]
