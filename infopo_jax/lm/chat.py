"""Chat markup as ids with roles, for any tokenizer that has a chat template.

A rollout is kept as the very ids that were sampled and fed. The prompt is rendered by the template once; after that,
only what follows an action is rendered: markup (TEMPLATE), content (FEEDBACK), markup, up to where the agent speaks
again. The markup is read off the template by rendering unmistakable contents and cutting them out.
"""

import functools
from collections.abc import Sequence
from typing import Any

from infopo_jax.types import Role

_MARK = '\u2042{}\u2042'  # stands for a content while the markup around it is read off


class Chat:
    """Renders messages for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a chat template and an end-of-sequence token.

    Raises:
        ValueError: the template or the stop token is missing, the template hides contents, or ends an action with
            another token.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, 'chat_template', None):
            raise ValueError('the tokenizer has no chat template; set tokenizer.chat_template')
        if tokenizer.eos_token_id is None:
            raise ValueError('the tokenizer has no eos_token, which is what ends an action; set tokenizer.eos_token')
        self.tokenizer = tokenizer
        self.stop_id = int(tokenizer.eos_token_id)
        self.vocab_size = len(tokenizer)
        self._prompts: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without markup."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, markup included."""
        return self.tokenizer.decode([int(i) for i in ids])

    def action_text(self, ids: Sequence[int]) -> str:
        """Returns what the agent said: the text of sampled ids up to the stop token."""
        ids = [int(i) for i in ids]
        return self.tokenizer.decode(ids[: ids.index(self.stop_id)] if self.stop_id in ids else ids)

    def prompt(self, messages: Sequence[dict], tools: Sequence[dict] | None = None) -> list[int]:
        """Returns the ids of the opening messages, up to where the agent speaks."""
        text = self._render(messages, tools=tools, open_turn=True)
        if text not in self._prompts:
            if len(self._prompts) > 10_000:
                self._prompts.clear()
            self._prompts[text] = self.encode(text)
        return list(self._prompts[text])

    def reply(self, messages: Sequence[dict], *, stopped: bool = True) -> tuple[list[int], list[int]]:
        """Returns ids and roles of what follows an action.

        Args:
            messages: the environment's answer, at least one message.
            stopped: whether the action ended with the stop token; if not (it ran into its cap), markup closes it.

        Returns:
            ids and, beside them, roles: TEMPLATE for markup, FEEDBACK for contents.
        """
        pieces = self._markup(tuple(m['role'] for m in messages), stopped)
        ids, roles = list(pieces[0]), [int(Role.TEMPLATE)] * len(pieces[0])
        for message, piece in zip(messages, pieces[1:], strict=True):
            content = self.encode(message['content'])
            ids += [*content, *piece]
            roles += [int(Role.FEEDBACK)] * len(content) + [int(Role.TEMPLATE)] * len(piece)
        return ids, roles

    @functools.lru_cache(maxsize=1024)  # noqa: B019 (a Chat lives as long as the run)
    def _markup(self, message_roles: tuple[str, ...], stopped: bool) -> list[list[int]]:
        """Returns the ids of the markup before, between and after the contents of messages with these roles."""
        said = _MARK.format('said')
        marks = [_MARK.format(i) for i in range(len(message_roles))]
        talk = [{'role': 'user', 'content': 'hello'}, {'role': 'assistant', 'content': said}]
        talk += [{'role': role, 'content': mark} for role, mark in zip(message_roles, marks, strict=True)]
        rest, pieces = self._render(talk, tools=None, open_turn=True), []
        for mark in (said, *marks):
            before, found, rest = rest.partition(mark)
            if not found:
                raise ValueError(
                    f'the chat template hides the content of one of {message_roles}; it cannot be used here'
                )
            pieces.append(before)
        pieces = [*pieces[1:], rest]
        stop = self.tokenizer.eos_token
        if not pieces[0].startswith(stop):
            raise ValueError(
                f'the chat template ends what the agent says with {pieces[0][:20]!r}, not with the eos_token {stop!r}, '
                'at which sampling stops; set tokenizer.eos_token to what the template writes there'
            )
        if stopped:  # the agent has sampled the stop token itself
            pieces[0] = pieces[0].removeprefix(stop)
        return [self.encode(piece) for piece in pieces]

    def _render(self, messages, *, tools, open_turn) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=open_turn, tokenize=False
        )
