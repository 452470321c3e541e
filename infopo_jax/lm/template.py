"""A chat template as text: what it writes around contents, how it ends an action, and which tool calls it teaches.

Nothing is known about a template but what it renders. Markup is read off by rendering unmistakable contents and cutting
them out; what becomes of a content (trimmed, escaped as JSON) by rendering it where the markup is known.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_MARK = '\u2042{}\u2042'  # stands for a content while the markup around it is read off
_SAID = _MARK.format('said')  # stands for what the agent said
_OPENING = {'role': 'user', 'content': 'hello'}
_CALL_ID = '000000000'  # of a tool's answer that names no call; Mistral's templates want nine characters
_DATE = '26 Jul 2024'  # Llama's templates write today's date otherwise, and a resumed run would see other prompts
_NO_ARGUMENTS = {'type': 'object', 'properties': {}}
_PROBE = {
    'type': 'function',
    'function': {'name': 'probe_of_tools', 'description': 'Probes.', 'parameters': _NO_ARGUMENTS},
}
_LAYOUTS = {
    'hermes': '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    'llama3': '{"name": <function-name>, "parameters": <args-json-object>}',
    'mistral': '[TOOL_CALLS] [{"name": <function-name>, "arguments": <args-json-object>}]',
}
_RESPONSE = '<tool_response>\n', '\n</tool_response>'  # around a tool's answer in a template that has no role for it


class Template:
    """Reads the chat template of one tokenizer.

    A template that knows no system or tool role, or wants user and assistant to alternate (Gemma, Mistral), gets
    messages folded: system and tool messages become the user's, a tool's answer between ``<tool_response>`` tags, and
    messages of the user in a row are joined by a blank line.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        enable_thinking: handed to the template, where it knows the switch (Qwen3); None: the template's own default.

    Raises:
        ValueError: there is no template; it hides what is said; it ends an action with nothing that is a token.
    """

    def __init__(self, tokenizer: Any, *, enable_thinking: bool | None = None):
        if not getattr(tokenizer, 'chat_template', None):
            raise ValueError('the tokenizer has no chat template; set tokenizer.chat_template')
        self._tokenizer = tokenizer
        self._switches = {'date_string': _DATE}
        if enable_thinking is not None:
            self._switches['enable_thinking'] = enable_thinking
        self._folded: dict[str, bool] = {}
        self._markup: dict[str, list[str]] = {}
        self.stop = self._find_stop()
        self.drops_thinking = self._find_drops_thinking()
        self.tool_format = self._find_tool_format()

    def render(self, messages: Sequence[Message], tools: Sequence[dict] | None = None) -> str:
        """Returns messages as text, up to where the agent speaks.

        Raises:
            ValueError: the template cannot render messages of these roles, folded or not, without hiding a content.
        """
        key = _outline(messages, bool(tools))
        if key not in self._folded:
            self._folded[key] = self._must_fold(messages, tools)
        return self._apply(fold(messages) if self._folded[key] else messages, tools)

    def markup(self, messages: Sequence[Message]) -> list[str]:
        """Returns the text before an action, and before, between and after the contents of messages that follow it.

        Returns:
            ``len(messages) + 2`` texts. The first begins with an opening; the second begins with the stop token.
        """
        key = _outline(messages, False)
        if key not in self._markup:
            marks = [_MARK.format(i) for i in range(len(messages))]
            marked = [m | {'content': mark} for m, mark in zip(messages, marks, strict=True)]
            self._markup[key] = _cut(self.render([*_talk(_SAID), *marked]), [_SAID, *marks])
        return self._markup[key]

    def written(self, message: Message) -> str:
        """Returns a message's content as the template writes it after an action: trimmed, say, or escaped as JSON."""
        head, before, after = self.markup([message])
        return _between(self.render([*_talk(_SAID), message]), head + _SAID + before, after, message['content'])

    def lead(self) -> str:
        """Returns what the template writes between where the agent speaks and its words (Mistral: a space)."""
        prompt, head = self.render([_OPENING]), self.markup([_OPENING])[0]
        return head.removeprefix(prompt) if head.startswith(prompt) else ''

    def history(
        self, opening: Sequence[Message], turns: Sequence[tuple[str, Sequence[Message]]], tools: Sequence[dict] | None
    ) -> tuple[list[str], list[str]]:
        """Reads off how the template writes a talk now: old actions perhaps without their thoughts.

        Args:
            opening: messages before the first action.
            turns: what the agent said, and the messages that answered it.
            tools: shown in the opening.

        Returns:
            What was said as it now stands, per turn; and the text before, between and after all contents that follow
            the opening, actions included, up to where the agent speaks.
        """
        after = [m for said, answers in turns for m in ({'role': 'assistant', 'content': said}, *answers)]
        marks = [_MARK.format(i) for i in range(len(after))]
        marked = [m | {'content': mark} for m, mark in zip(after, marks, strict=True)]
        pieces, said = _cut(self.render([*opening, *marked], tools), marks), []
        for i, message in enumerate(after):
            if message['role'] == 'assistant':
                text = self.render([*opening, *marked[:i], message, *marked[i + 1 :]], tools)
                before, behind = _join(pieces[: i + 1], marks[:i]), _join(pieces[i + 1 :], marks[i + 1 :])
                said.append(_between(text, before, behind, message['content']))
        return said, pieces

    def shows_tools(self) -> bool:
        """Whether the template writes tools into the prompt."""
        try:
            return _PROBE['function']['name'] in self._apply([_OPENING], [_PROBE])
        except Exception:  # a template may raise anything; it cannot show these then
            return False

    def _apply(self, messages, tools) -> str:
        messages = [m | {'tool_call_id': _CALL_ID} if _lacks_id(m) else m for m in messages]
        return self._tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, tokenize=False, **self._switches
        )

    def _must_fold(self, messages, tools) -> bool:
        """Returns whether messages of these roles are to be folded; raises ValueError if that does not help."""
        marks = [_MARK.format(f'fold{i}') for i in range(len(messages))]
        marked = [m | {'content': mark} if m.get('content') else m for m, mark in zip(messages, marks, strict=True)]
        wanted = [m['content'] for m in marked if m.get('content')]
        reason = ''
        for folded in (False, True):
            try:
                text = self._apply(fold(marked) if folded else marked, tools)
            except Exception as error:  # templates raise what they like
                reason = f'raises {type(error).__name__}: {error}'
                continue
            if all(mark in text for mark in wanted):
                return folded
            reason = 'hides the content of one of them'
        roles = [m['role'] for m in messages]
        raise ValueError(f'the chat template cannot render messages of the roles {roles}: it {reason}')

    def _find_stop(self) -> str:
        """Returns the token that the template writes at the end of what the agent says."""
        after = self.markup([_OPENING])[1]
        tokens = [t.content for t in self._tokenizer.added_tokens_decoder.values()]
        tokens = [t for t in [*tokens, self._tokenizer.eos_token] if t and after.lstrip().startswith(t)]
        if not tokens:
            raise ValueError(
                f'the chat template ends what the agent says with {after[:20]!r}, which is no token of the tokenizer, '
                'so sampling could not stop there; take a template that ends it with a token, such as '
                f'tokenizer.eos_token = {self._tokenizer.eos_token!r}'
            )
        return max(tokens, key=len)

    def _find_drops_thinking(self) -> bool:
        """Returns whether thoughts of earlier turns are left out once the user has spoken again."""
        thought = f'<think>\n{_MARK.format("thought")}\n</think>\n\n{_SAID}'
        return _MARK.format('thought') not in self.render([*_talk(thought), _OPENING])

    def _find_tool_format(self) -> str | None:
        """Returns the layout of calls (``envs.tools.FORMATS``) that the template teaches; None if none or another."""
        source = self._tokenizer.chat_template
        source = source if isinstance(source, str) else '\n'.join(map(str, dict(source).values()))
        if not self.shows_tools():
            return None
        if '<tool_call>' in source:
            return 'hermes'
        if '[TOOL_CALLS]' in source:
            return 'mistral'
        return 'llama3' if '"parameters"' in source and 'python' in source else None  # <|python_tag|>, ipython


def fold(messages: Sequence[Message]) -> list[Message]:
    """Returns messages of the user and the assistant only, in turns; see ``Template``."""
    out: list[Message] = []
    for message in messages:
        if message['role'] == 'assistant':
            out.append(message)
            continue
        content = message['content']
        if message['role'] == 'tool':
            content = _RESPONSE[0] + content + _RESPONSE[1]
        if out and out[-1]['role'] == 'user':
            out[-1] = out[-1] | {'content': out[-1]['content'] + '\n\n' + content}
        else:
            out.append({'role': 'user', 'content': content})
    return out


def as_function(tool: dict) -> dict:
    """Returns a tool's schema wrapped as a function, as templates expect it."""
    tool = tool if 'function' in tool else {'type': 'function', 'function': tool}
    if 'parameters' in tool['function']:
        return tool
    return tool | {'function': tool['function'] | {'parameters': _NO_ARGUMENTS}}


def with_description(messages: Sequence[Message], tools: Sequence[dict], tool_format: str) -> list[Message]:
    """Describes tools in the system message, for a template that does not show them.

    Nothing is added where the system message names every tool already: an environment's own policy describes them.
    """
    first = messages[0] if messages and messages[0]['role'] == 'system' else None
    names = [as_function(tool)['function']['name'] for tool in tools]
    text = first['content'] if first else ''
    if all(re.search(rf'\b{re.escape(name)}\b', text) for name in names):
        return list(messages)
    text = f'{text}\n\n{_describe(tools, tool_format)}' if text else _describe(tools, tool_format)
    return [(first or {'role': 'system'}) | {'content': text}, *messages[1 if first else 0 :]]


def _describe(tools: Sequence[dict], tool_format: str) -> str:
    schemas = '\n'.join(json.dumps(as_function(tool), ensure_ascii=False) for tool in tools)
    return (
        '# Tools\n\nYou may call one function per turn. Its signature is one of these, in JSON:\n'
        f'<tools>\n{schemas}\n</tools>\n\nTo call one, write its name and arguments in this form:\n'
        f'{_LAYOUTS[tool_format]}'
    )


def _talk(said: str) -> list[Message]:
    return [_OPENING, {'role': 'assistant', 'content': said}]


def _lacks_id(message: Message) -> bool:
    return message['role'] == 'tool' and 'tool_call_id' not in message


def _outline(messages: Sequence[Message], shown: bool) -> str:
    """Returns all of the messages but their contents: what the markup around them depends on."""
    rest = [{k: v if k != 'content' else bool(v) for k, v in message.items()} for message in messages]
    return json.dumps([shown, rest], default=str)


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """Returns the text before, between and after marks that stand in it in this order."""
    pieces, rest = [], text
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise ValueError('the chat template writes messages in another order than they were said: take another one')
        pieces.append(before)
    return [*pieces, rest]


def _join(pieces: Sequence[str], marks: Sequence[str]) -> str:
    """Undoes ``_cut``."""
    return pieces[0] + ''.join(mark + piece for mark, piece in zip(marks, pieces[1:], strict=True))


def _between(text: str, before: str, after: str, otherwise: str) -> str:
    """Returns what stands between two known texts; ``otherwise`` where the content has changed what is around it."""
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)]
    return otherwise
