"""A small BPE tokenizer, trained on an environment's own text, with a chat template of one token per role.

A message is ``<|role|>content<|im_end|>``; ``<|im_end|>`` ends an agent's turn, so it is the end-of-sequence token.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = '<|pad|>', '<|im_end|>'
ROLES = ('system', 'user', 'assistant', 'tool')
CHAT_TOKENS = (PAD, END, *(f'<|{role}|>' for role in ROLES))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(
    corpus: Iterable[str], special_tokens: Sequence[str], *, vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer; the same input gives the same tokenizer.

    Text is split around ``special_tokens`` only, not at spaces or punctuation, so that a frequent phrase or a fixed
    piece of JSON becomes one token. All 256 bytes are in the vocabulary: any text encodes, and decodes to itself.

    Args:
        corpus: texts, chat markup excluded.
        special_tokens: words that stay whole, such as ids; where several match, the longest counts.
        vocab_size: most entries: chat tokens, 256 bytes, special tokens, and as many merges as fit and occur.

    Returns:
        A tokenizer with ids 0 for padding and 1 for the end of a turn, and a chat template.

    Raises:
        ValueError: the vocabulary is too small for what has to be in it, or a special token is empty.
    """
    words = list(dict.fromkeys(special_tokens))
    if '' in words:
        raise ValueError('a special token must not be empty: remove it from special_tokens')
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(CHAT_TOKENS) + len(alphabet) + len(words)
    if vocab_size < least:
        raise ValueError(
            f'vocab_size must be at least {least} ({len(words)} special tokens and bytes), got {vocab_size}'
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(words),
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in CHAT_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(corpus, words), trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _pieces(corpus: Iterable[str], words: Sequence[str]) -> Iterator[str]:
    """Yields the text between special tokens, which is all that merges may span."""
    longest_first = sorted(words, key=len, reverse=True)
    split = re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')
    for text in corpus:
        yield from filter(None, split.split(text))
