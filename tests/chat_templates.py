"""Chat templates of the shapes that published models have, and small tokenizers to go with them.

The templates are written for these tests: of each shape they keep what bears on ids, namely its special tokens, where
white space stands, what becomes of system messages, tools, tool answers and old thoughts, and what it refuses.
"""

import functools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infopo_jax.lm.tokenizer import train_tokenizer

_TOOL_BLOCK = (
    '# Tools\n\nCall functions to help the user. Signatures within <tools></tools>:\n<tools>{% for t in tools %}'
    "{{ '\n' + (t | tojson) }}{% endfor %}\n</tools>\n\nReturn json within <tool_call></tool_call>:\n<tool_call>"
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
_TOOL_ANSWERS = (  # in one turn of the user as long as they follow each other
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)

CHATML = (  # Qwen2.5: a system prompt of its own where none is given
    "{% set first = messages[0] %}{% set given = first.role == 'system' %}"
    "{{ '<|im_start|>system\n' + (first.content if given else 'You are a helpful assistant.') }}"
    "{% if tools %}{{ '\n\n' }}" + _TOOL_BLOCK + "{% else %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}" + _TOOL_ANSWERS + '{% elif not (loop.first and given) %}'
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN3 = (  # thoughts stand only behind the user's last message; enable_thinking=False writes an empty one
    "{% set given = messages[0].role == 'system' %}"
    "{% if tools %}{{ '<|im_start|>system\n' + (messages[0].content + '\n\n' if given else '') }}" + _TOOL_BLOCK +
    "{% elif given %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    '{% set ns = namespace(query=0) %}{% for m in messages %}'
    "{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}" + _TOOL_ANSWERS +
    "{% elif m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.query and thought %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}"
    "{% elif not (loop.first and given) %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    '{% endif %}'
)  # fmt: skip

LLAMA3 = (  # 3.1: BOS and a dated system prompt, tools in the user's first message, tool answers as JSON to 'ipython'
    "{% if messages[0].role == 'system' %}{% set policy = messages[0].content | trim %}{% set rest = messages[1:] %}"
    "{% else %}{% set policy = '' %}{% set rest = messages %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}{% if tools %}{{ 'Environment: ipython\n' }}"
    "{% endif %}{{ 'Today Date: ' + (date_string or strftime_now('%d %b %Y')) + '\n\n' + policy + '<|eot_id|>' }}"
    "{% if tools %}{% if not rest %}{{ raise_exception('tools need a first user message') }}{% endif %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\n\nRespond with a JSON for a function call in the format '"
    ' + \'{"name": function name, "parameters": dictionary}.\n\n\' }}{% for t in tools %}'
    "{{ (t | tojson(indent=4)) + '\n\n' }}{% endfor %}{{ (rest[0].content | trim) + '<|eot_id|>' }}"
    '{% set rest = rest[1:] %}{% endif %}{% for m in rest %}'
    "{% if m.role == 'tool' or m.role == 'ipython' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{{ m.content | tojson }}{{ '<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA = (  # no system role, no tools, the agent is called 'model'; eos_token is another token than <end_of_turn>
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    '{% for m in messages %}' + _ALTERNATE + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (m.content | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

MISTRAL = (  # 7B v0.3: the agent's words begin with a space; system message and tools move to the user's last message
    "{% set given = messages[0].role == 'system' %}{% set rest = messages[1:] if given else messages %}"
    "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{% for m in rest if m.role != 'tool' and not m.tool_calls %}" + _ALTERNATE + '{% endfor %}{% for m in rest %}'
    "{% if m.role == 'user' %}{% if tools and m == users[-1] %}"
    "{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + (messages[0].content + '\n\n' if given and loop.last else '') + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('9 letters') }}{% endif %}"
    '{{ \'[TOOL_RESULTS] {"content": \' + m.content + \', "call_id": "\' + m.tool_call_id + \'"}[/TOOL_RESULTS]\' }}'
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] ' + (m.tool_calls | tojson) + eos_token }}"
    "{% else %}{{ ' ' + (m.content | trim) + eos_token }}{% endif %}{% endfor %}"
)

_CHATML_TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
_QWEN_WORDS = ['<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>', '<think>', '</think>']
_LLAMA_TOKENS = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eom_id|>']
_LLAMA_TOKENS += ['<|eot_id|>', '<|python_tag|>']
_MISTRAL_TOKENS = ['<s>', '</s>', '[INST]', '[/INST]', '[TOOL_CALLS]', '[AVAILABLE_TOOLS]', '[/AVAILABLE_TOOLS]']
_MISTRAL_TOKENS += ['[TOOL_RESULTS]', '[/TOOL_RESULTS]']

# name: template, kind of tokenizer, special tokens, other added tokens, bos_token, eos_token
SHAPES = {
    'tiny': (None, 'own', [], [], None, '<|im_end|>'),
    'chatml': (CHATML, 'bytes', _CHATML_TOKENS, _QWEN_WORDS[:2], None, '<|im_end|>'),
    'qwen3': (QWEN3, 'bytes', _CHATML_TOKENS, _QWEN_WORDS, None, '<|im_end|>'),
    'llama3': (LLAMA3, 'bytes', _LLAMA_TOKENS, [], '<|begin_of_text|>', '<|eot_id|>'),
    'gemma': (GEMMA, 'spaces', ['<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'], [], '<bos>', '<eos>'),
    'mistral': (MISTRAL, 'prefix', _MISTRAL_TOKENS, [], '<s>', '</s>'),
}

CORPUS = [
    'Which order is it? order_3 is on its way.\n\nYou are a shop. hello, thanks, please\n',
    json.dumps({'order_3': {'status': 'on its way', 'items': [1, 20, 300]}}) + '\n',
    '{"name": "get_order", "arguments": {"order": "order_3"}}\n</tool_response>\nuser\nassistant\nsystem\n',
] * 4
# How the byte-level tokenizers of Qwen and Llama split text: "}\n" may become one token, "user\n" may not.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


@functools.cache
def tokenizer_of(shape):
    """Returns a small tokenizer with the template of a shape. It is shared: leave it as it is, or take a copy."""
    template, kind, special, added, bos, eos = SHAPES[shape]
    if kind == 'own':
        return train_tokenizer(CORPUS, ['order_3'], vocab_size=340)
    tokenizer = _byte_level() if kind == 'bytes' else _sentence_piece(prefix=kind == 'prefix')
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = template
    return fast


def _byte_level():
    """Byte-level BPE, as of Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    return tokenizer


def _sentence_piece(*, prefix):
    """BPE over text in which spaces are '▁', unknown characters as bytes; Mistral puts one in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    strip = []
    if prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
        strip = [decoders.Strip(' ', 1, 0)]
    else:
        tokenizer.normalizer = normalizers.Replace(' ', '▁')
    words = [word for line in CORPUS for word in line.replace(' ', ' \0').split('\0')]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=240))
    state = json.loads(tokenizer.to_str())
    vocab = state['model']['vocab']
    for token in ['<unk>', *(f'<0x{byte:02X}>' for byte in range(256))]:
        vocab[token] = len(vocab)
    state['model'] |= {'byte_fallback': True, 'unk_token': '<unk>', 'fuse_unk': True}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
