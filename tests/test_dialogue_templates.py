"""Dialogues by the chat templates of published models, also of those that drop old thoughts."""

from chat_templates import tokenizer_of
from dialogues import ROOMY, begin, feed, utter
from talk import Colour

from infopo_jax.lm.chat import Chat
from infopo_jax.types import EndReason, Role


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
