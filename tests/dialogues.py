"""Dialogues whose agent's tokens are written by hand."""

import dataclasses

from talk import Colour, tiny_chat

from infopo_jax.rollout.dialogue import Dialogue, Limits

CHAT = tiny_chat()
LIMITS = Limits(
    max_turns=4, max_tokens=200, max_prompt_tokens=40, max_action_tokens=8, max_feedback_tokens=60, max_bad_actions=2
)
ROOMY = {'max_action_tokens': 200, 'max_tokens': 2000, 'max_prompt_tokens': 200, 'max_turns': 9}


def begin(task='red', *, env=None, chat=CHAT, **limits):
    dialogue = Dialogue(chat, dataclasses.replace(LIMITS, **limits), task, group=0, member=0, seed=0)
    exchange(dialogue, env or Colour())
    return dialogue


def exchange(dialogue, env=None):
    """Asks the environment for the opening (a dialogue that has none gets ``env``) or an answer, and waits for it."""
    call = dialogue.ask(lambda: env)
    if call is None:
        return
    try:
        value = call()
    except Exception as error:
        dialogue.fail(error)
    else:
        dialogue.receive(value)


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
    exchange(dialogue)
    return dialogue


def utter(dialogue, chat, text, stop):
    dialogue.hear([*chat.encode_action(text), stop], [-0.1] * (len(chat.encode_action(text)) + 1))
    assert dialogue.spoken
    exchange(dialogue)


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
