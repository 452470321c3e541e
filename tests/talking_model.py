"""A tiny model that talks, and talks in which it is to say something."""

from models import often_stopping, tiny_model
from talk import tiny_chat

CHAT = tiny_chat()
SYSTEM = {'role': 'system', 'content': 'take red'}
TALK = [SYSTEM, {'role': 'user', 'content': 'which colour'}]
LONGER = [*TALK, {'role': 'assistant', 'content': 'red'}, {'role': 'user', 'content': 'it is blue. ' * 3}]


def make_model(seed):
    model = tiny_model(CHAT.vocab_size, seed=seed, head=2.0, tie_embeddings=False)
    return often_stopping(model, CHAT.stop_id, 3.0)
