"""Chat markup as ids with roles, for any tokenizer that has a chat template.

A rollout is kept as the very ids that were sampled and fed. The prompt is rendered by the template once; after that,
only what follows an action is rendered: markup (TEMPLATE), content (FEEDBACK), markup, up to where the agent speaks
again::

    prompt   <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n              PROMPT
    action   which order?<|im_end|>                                              ACTION, the stop token too
    reply    \\n<|im_start|>user\\n  order_3  <|im_end|>\\n<|im_start|>assistant\\n   TEMPLATE, FEEDBACK, TEMPLATE

Contents are tokenized apart from the markup around them, so that the counterfactual replaces them and nothing else. The
ids equal those of the template's own rendering wherever a content borders on special tokens, or its outermost
characters do not merge with the markup's: Qwen would write a tool's answer that ends in '}' and the newline behind it
as one token '}\\n'; here they stay two. A space that markup ends with (Mistral's '[INST] ') goes with the content.

**Thinking.** Some templates (Qwen3's) leave the thoughts of earlier turns out of the history. ``keep_thinking=True``
appends and never looks back: every action is followed by exactly what it was sampled after, thoughts included, which is
what the paired scoring and the loss assume. ``keep_thinking=False`` renders the talk as the template does: the agent
sees its old actions without their thoughts (``history``). Such a row is no record of what was sampled: the thought that
an action was conditioned on is gone from in front of it. One row cannot hold both, so this is for evaluation and for
talking with a model; ``check_trainable`` refuses it for training. Of templates that keep thoughts, both are the same.
"""

import re
from collections.abc import Sequence
from typing import Any

from infopo_jax.lm import template as template_lib
from infopo_jax.lm.template import Message, Template
from infopo_jax.types import Role

TOOL_FORMATS = ('auto', 'hermes', 'llama3', 'mistral', 'text')
_ENDS = ('<|eom_id|>', '<|end_of_text|>', '<|endoftext|>')  # end a text too, in the tokenizers that have them
_BREAK = '\ue0f1\ue0f2'  # private-use characters: set into a content where it would spell a token of markup
_MAX_PROMPTS = 256  # renderings kept: those of a batch, whose groups share them
_MAX_CONTENTS = 4096  # contents whose ids are kept


class Chat:
    """Renders messages for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        keep_thinking: whether later turns see the thoughts of earlier ones, whatever the template does; see above.
        enable_thinking: the switch of templates that have one (Qwen3); None leaves it to the template.
        tool_format: layout of tool calls, see ``envs.tools``; 'auto' takes what the template teaches. A template that
            shows no tools, or teaches another layout, gets them described in the system message, in Hermes layout by
            default, unless a system message names them all already. 'text': the agent is shown no tools.
        stop_tokens: tokens that end an action beside the template's own and the tokenizer's eos_token.

    Raises:
        ValueError: no template, or one that cannot be used (the message says why); an unknown tool_format or token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        keep_thinking: bool = True,
        enable_thinking: bool | None = None,
        tool_format: str = 'auto',
        stop_tokens: Sequence[str] = (),
    ):
        if tool_format not in TOOL_FORMATS:
            raise ValueError(f'tool_format must be one of {", ".join(TOOL_FORMATS)}, got {tool_format!r}')
        self.tokenizer = tokenizer
        self.template = Template(tokenizer, enable_thinking=enable_thinking)
        self.vocab_size = len(tokenizer)
        self.num_rows: int | None = None  # of the model's embedding, where that may be another number
        self.append_only = keep_thinking or not self.template.drops_thinking
        self.tool_format = (self.template.tool_format or 'hermes') if tool_format == 'auto' else tool_format
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        missing = [token for token in stop_tokens if token not in added]
        if missing:
            raise ValueError(f'stop token {missing[0]!r} is no special token of the tokenizer; its own: {list(added)}')
        own = [token for token in (self.template.stop, tokenizer.eos_token) if token]
        ends = [*own, *(token for token in (*_ENDS, *stop_tokens) if token in added)]
        self.stop_ids = tuple(dict.fromkeys(int(id) for id in tokenizer.convert_tokens_to_ids(ends)))
        self.stop_id = self.stop_ids[0]  # what the template itself writes
        self._lead = self.template.lead()
        self._prompts: dict[str, list[int]] = {}
        self._markup: dict[str, list[int]] = {}
        self._contents: dict[str, list[int]] = {}
        # Some tokenizers set a space in front of a text that nothing precedes, and take it away again in decoding: a
        # piece of a text is handled behind a stop token, then.
        self._needs_anchor = self._raw('a') != self._raw(self.template.stop + 'a')[1:]
        self._banned = self._find_banned(added)
        words = sorted((text for text, id in added.items() if id in self._banned), key=len, reverse=True)
        self._spells = re.compile('|'.join(map(re.escape, words)) or r'(?!)')

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a content. What spells markup ('<|im_end|>') is encoded as the plain text that it is."""
        return [id for part in self._broken(text).split(_BREAK) if part for id in self._ids(part)]

    def encode_action(self, text: str) -> list[int]:
        """Returns the ids of what the agent could say, in which special tokens count; without the stop token."""
        ids = self._ids(text)
        return ids if ids and ids[0] in self._banned else self._ids(self._lead + text)  # '[TOOL_CALLS]' has no space

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, markup included."""
        ids = [self.stop_id] * self._needs_anchor + [int(i) for i in ids]
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text.removeprefix(self.template.stop) if self._needs_anchor else text

    def action_text(self, ids: Sequence[int]) -> str:
        """Returns what the agent said: the text of sampled ids up to a stop token."""
        ids = [int(i) for i in ids]
        end = next((i for i, id in enumerate(ids) if id in self.stop_ids), len(ids))
        return self.decode(ids[:end]).removeprefix(self._lead)

    def content(self, message: Message) -> list[int]:
        """Returns the ids of a message's content as ``reply`` feeds it; the placeholder of a counterfactual is one."""
        return list(self._content_ids(message, _space_of(self.template.markup([message])[1])))

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict] | None = None) -> list[int]:
        """Returns the ids of the opening messages, up to where the agent speaks: the template's own rendering.

        Raises:
            ValueError: the template cannot render these messages.
        """
        return list(self._prompt_ids(self.template.render(*self._opening(messages, tools))))

    def reply(self, messages: Sequence[Message], *, stopped: bool = True) -> tuple[list[int], list[int]]:
        """Returns ids and roles of what follows an action.

        Args:
            messages: the environment's answer, at least one message.
            stopped: whether the action ended with a stop token, which then stands for the template's own; if not (it
                ran into its cap), markup closes it.

        Returns:
            ids and, beside them, roles: TEMPLATE for markup, FEEDBACK for contents.

        Raises:
            ValueError: the template cannot render these messages.
        """
        return self._after(self.template.markup(messages)[1:], messages, stopped)

    def history(
        self,
        opening: Sequence[Message],
        turns: Sequence[tuple[Sequence[int], Sequence[Message]]],
        tools: Sequence[dict] | None = None,
    ) -> tuple[list[int], list[int], list[int]]:
        """Renders a talk as the template writes it now, thoughts of earlier turns left out where it leaves them out.

        An action that the template does not change keeps its sampled ids.

        Args:
            opening: what ``prompt`` was given.
            turns: the ids of each action, and the messages that answered it.
            tools: what ``prompt`` was given.

        Returns:
            ids, roles and turns (-1 in the prompt) of the row up to where the agent speaks.
        """
        said = [self.action_text(ids) for ids, _ in turns]
        opening, tools = self._opening(opening, tools)
        now, pieces = self.template.history(opening, [(x, m) for x, (_, m) in zip(said, turns, strict=True)], tools)
        ids = list(self._prompt_ids(pieces[0].removesuffix(self._lead)))
        roles, turn, end = [int(Role.PROMPT)] * len(ids), [-1] * len(ids), 0
        for t, (sampled, messages) in enumerate(turns):
            stop = [int(id) for id in sampled[-1:] if id in self.stop_ids]
            action = [int(id) for id in sampled] if now[t] == said[t] else [*self.encode_action(now[t]), *stop]
            start, end = end + 1, end + 1 + len(messages)  # of the pieces around this turn's contents
            last = pieces[end].removesuffix(self._lead if t + 1 < len(turns) else '')
            after, after_roles = self._after([*pieces[start:end], last], messages, bool(stop))
            ids += [*action, *after]
            roles += [int(Role.ACTION)] * len(action) + after_roles
            turn += [t] * (len(action) + len(after))
        return ids, roles, turn

    def check_trainable(self) -> None:
        """Raises ValueError unless rows are exactly what was sampled; see the head of this file."""
        if not self.append_only:
            raise ValueError(
                'config.chat.keep_thinking = False: this chat template leaves the thoughts of earlier turns out, so a '
                'row would not hold what its actions were sampled after and cannot be trained on; set it to True, or '
                'use it for evaluation only'
            )

    def _after(self, pieces: Sequence[str], messages: Sequence[Message], stopped: bool) -> tuple[list[int], list[int]]:
        """Lays out the markup behind an action with the contents between its pieces."""
        pieces = list(pieces)
        if stopped:  # the agent has sampled the stop token itself
            pieces[0] = pieces[0].partition(self.template.stop)[2]
        ids, roles = [], []
        for piece, message in zip(pieces, messages, strict=False):
            markup = self._markup_ids(_without_space(piece))
            content = self._content_ids(message, _space_of(piece))
            ids += [*markup, *content]
            roles += [int(Role.TEMPLATE)] * len(markup) + [int(Role.FEEDBACK)] * len(content)
        last = self._markup_ids(pieces[-1])
        return ids + last, roles + [int(Role.TEMPLATE)] * len(last)

    def _opening(self, messages, tools) -> tuple[list[Message], list[dict] | None]:
        """Returns the opening with contents made plain, and the tools that the template is to show."""
        messages = [m | {'content': self._broken(m['content'])} if m.get('content') else m for m in messages]
        if not tools or self.tool_format == 'text':
            return messages, None
        if self.tool_format == self.template.tool_format:
            return messages, [template_lib.as_function(tool) for tool in tools]
        return template_lib.with_description(messages, tools, self.tool_format), None

    def _prompt_ids(self, text: str) -> list[int]:
        """Returns the ids of a rendering, tokenized as a whole but for where contents spell markup."""
        if text not in self._prompts:
            if len(self._prompts) >= _MAX_PROMPTS:
                self._prompts.clear()
            first, *parts = text.split(_BREAK)
            self._prompts[text] = self._raw(first) + [id for part in parts for id in self._ids(part)]
        return self._prompts[text]

    def _content_ids(self, message: Message, space: str) -> list[int]:
        """Returns the ids of a content; kept: users repeat themselves, and contents are counted before they are fed."""
        key = space + repr(sorted(message.items()))
        if key not in self._contents:
            if len(self._contents) >= _MAX_CONTENTS:
                self._contents.clear()
            self._contents[key] = self.encode(space + self.template.written(message))
        return self._contents[key]

    def _markup_ids(self, text: str) -> list[int]:
        if text not in self._markup:
            self._markup[text] = self._ids(text)
        return self._markup[text]

    def _broken(self, text: str) -> str:
        """Sets _BREAK behind the first character of whatever spells a token of markup."""
        parts, start = [], 0
        while found := self._spells.search(text, start):
            parts.append(text[start : found.start() + 1])
            start = found.start() + 1
        parts.append(text[start:])
        # A tokenizer may find its tokens in other spellings too (after lowering letters, say): then every letter alone.
        return _BREAK.join(p if self._banned.isdisjoint(self._ids(p)) else _BREAK.join(p) for p in parts)

    def _ids(self, text: str) -> list[int]:
        """Returns the ids of a piece of a text."""
        return self._raw(self.template.stop + text)[1:] if self._needs_anchor and text else self._raw(text)

    def _raw(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self.num_rows is not None and ids and max(ids) >= self.num_rows:  # XLA would read another row instead
            raise ValueError(
                f'{text[:40]!r} has a token of id {max(ids)}, the embedding of the model {self.num_rows} rows: '
                'tokenizer and checkpoint do not belong together'
            )
        return ids

    def _find_banned(self, added: dict[str, int]) -> frozenset[int]:
        """Returns the ids that no content may have: special tokens, and what stands in the markup around contents."""
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        pieces = [p for role in ('user', 'tool') for p in self.template.markup([{'role': role, 'content': 'x'}])[1:]]
        return frozenset(special | (set(added.values()) & {id for piece in pieces for id in self._ids(piece)}))


def _space_of(piece: str) -> str:
    """Returns the space that a piece of markup ends with, if it does; it becomes part of the content's first token."""
    return ' ' if piece.endswith(' ') else ''


def _without_space(piece: str) -> str:
    return piece[:-1] if piece.endswith(' ') else piece
