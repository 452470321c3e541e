"""Small checkpoints of the Qwen2.5 shape with random weights, as transformers saves them; needs torch."""

import re

import pytest
from chat_templates import CHATML, QWEN_WORDS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infopo_jax.lm.template import as_function

CALL_TAGS = ('<tool_call>', '</tool_call>')
PARTS = re.compile(r'\n\n|<\|\w+\|>|' + '|'.join(CALL_TAGS))  # what paragraphs stand between


def save_checkpoint(path, env, *, says=(), coarse=False, context=4096):
    """Saves a random model: rows of the vocabulary beyond the tokenizer, as Qwen2.5 has them.

    Args:
        path: an existing folder.
        env: text environment whose opening (and ``corpus``, if it has one) trains the tokenizer.
        says: texts, each one token; nearly every action is one of them, whatever was said before.
        coarse: makes each paragraph of the opening one token, so that prompts of ten thousand tokens have some hundred.
        context: longest, in tokens.

    Returns:
        ``path``.
    """
    torch = pytest.importorskip('torch', reason="needs torch: pip install -e '.[parity]'")
    transformers = pytest.importorskip('transformers')
    tokenizer = save_tokenizer(path, env, says, coarse=coarse)
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=48, num_hidden_layers=1 if says else 2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, rope_theta=1e6,
        tie_word_embeddings=not says,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
    for name, weight in model.named_parameters():  # far from its start, as a trained one is
        weight.data += 0.2 * torch.randn_like(weight) * (weight.abs().mean() if 'norm' not in name else 1.0)
    if says:
        _make_say(model, tokenizer.convert_tokens_to_ids(list(says)), tokenizer.eos_token_id)
    model.save_pretrained(path)
    return path


def save_tokenizer(path, env, words=(), *, coarse=False):
    """Saves a byte-level tokenizer with Qwen2.5's special tokens and the shape of its template; returns it.

    Further ``words`` are one token each; the others see ``save_checkpoint``.
    """
    messages, info = env.reset()
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior='isolated')  # transformers' Qwen2Tokenizer splits so
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ('<|endoftext|>', '<|im_start|>', '<|im_end|>')]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    blank = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<|im_end|>')
    blank.chat_template = CHATML
    tools = [as_function(tool) for tool in info.get('tools', ())]
    rendered = blank.apply_chat_template(messages, tools=tools or None, tokenize=False)
    corpus = env.corpus() if hasattr(env, 'corpus') else ()
    tokenizer.train_from_iterator([*set(corpus), *[rendered] * 50], trainer)
    parts = [part for part in PARTS.split(rendered) if len(part) > 8] if coarse else []
    tokenizer.add_tokens([AddedToken(word, special=False) for word in dict.fromkeys((*words, *CALL_TAGS, *parts))])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token='<|im_end|>',
        pad_token='<|endoftext|>',
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    fast.save_pretrained(path)
    return fast


def _make_say(model, ids, stop_id):
    """Has a model answer every token with one of ``ids``, and those with the stop token; some noise remains.

    Column 0 of the embedding is the same for all tokens, column 1 marks ``ids``; the head reads both.
    """
    embedding, head = model.model.embed_tokens.weight.data, model.lm_head.weight.data
    embedding[:, :2] = 0.0
    embedding[:, 0] = embedding[ids, 1] = 0.5
    head[:, :2] = 0.0
    head[ids, 0], head[ids, 1], head[stop_id, 1] = 1.8, -1.8, 3.0
    model.model.norm.weight.data[:2] = 1.0
