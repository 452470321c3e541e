"""The peers of benchmarks/sampler.py, each in a process of its own that answers over pipes.

    python benchmarks/sampler_peers.py tunix|transformers_dynamic|transformers_static CHECKPOINT NEW_TOKENS SAMPLED

Reads one line per call, a JSON list of prompts (lists of ids, one length), generates NEW_TOKENS for each, and writes
``{"seconds": ..., "tokens": [first row]}``. The first line that it writes says which versions speak. Nothing of this
package is imported: the interpreter may be that of another environment.
"""

import json
import os
import pathlib
import sys
import time

EOS = -1  # nothing stops early: every peer draws the same number of tokens


class Tunix:
    """google-tunix's vanilla sampler; its cache is as long as prompt and new tokens need, which suits it best."""

    def __init__(self, folder: str, new_tokens: int, sampled: bool):
        import importlib.metadata

        import jax.numpy as jnp
        from tunix.models.qwen3 import model as model_lib, params

        raw = json.loads((pathlib.Path(folder) / 'config.json').read_text())
        rope = raw.get('rope_parameters') or raw
        self.config = model_lib.ModelConfig(
            num_layers=raw['num_hidden_layers'], vocab_size=raw['vocab_size'], embed_dim=raw['hidden_size'],
            hidden_dim=raw['intermediate_size'], num_heads=raw['num_attention_heads'], head_dim=raw['head_dim'],
            num_kv_heads=raw['num_key_value_heads'], rope_theta=int(rope['rope_theta']),
            norm_eps=raw['rms_norm_eps'], use_tied_embedding=raw['tie_word_embeddings'],
        )  # fmt: skip
        self.model = params.create_model_from_safe_tensors(folder, self.config, dtype=jnp.float32)
        self.new_tokens, self.options = new_tokens, dict(temperature=1.0, top_p=1.0) if sampled else {}
        self.samplers = {}
        self.versions = f'google-tunix {importlib.metadata.version("google-tunix")}'

    def __call__(self, prompts):
        from tunix.generate import sampler as sampler_lib

        size = len(prompts[0]) + self.new_tokens
        if size not in self.samplers:
            c = self.config
            cache = sampler_lib.CacheConfig(
                cache_size=size, num_layers=c.num_layers, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim
            )
            self.samplers[size] = sampler_lib.Sampler(self.model, Numbers(), cache)
        texts = [' '.join(map(str, prompt)) for prompt in prompts]
        out = self.samplers[size](
            texts,
            max_generation_steps=self.new_tokens,
            max_prompt_length=len(prompts[0]),
            eos_tokens=[EOS],
            **self.options,
        )
        return [list(map(int, row)) for row in out.tokens]


class Numbers:
    """A tokenizer whose text is its ids; the interface that tunix asks for."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return ' '.join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self):
        return EOS

    def pad_id(self):
        return 0  # prompts do not hold it


class Transformers:
    """transformers' generate with torch, the cache growing ('dynamic') or allocated at once ('static')."""

    def __init__(self, folder: str, new_tokens: int, sampled: bool, cache: str):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self.torch = torch
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).to(self.device).eval()
        self.options = dict(
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=sampled, use_cache=True, pad_token_id=0,
            **(dict(temperature=1.0, top_k=0, top_p=1.0) if sampled else {}),
            **(dict(cache_implementation='static') if cache == 'static' else {}),
        )  # fmt: skip
        self.versions = f'transformers {transformers.__version__}, torch {torch.__version__}, {cache} cache'

    def __call__(self, prompts):
        ids = self.torch.tensor(prompts, device=self.device)
        with self.torch.no_grad():
            out = self.model.generate(ids, attention_mask=self.torch.ones_like(ids), **self.options)
        return out[:, ids.shape[1] :].tolist()


PEERS = {
    'tunix': Tunix,
    'transformers_dynamic': lambda *args: Transformers(*args, cache='dynamic'),
    'transformers_static': lambda *args: Transformers(*args, cache='static'),
}


def main(name: str, folder: str, new_tokens: str, sampled: str) -> None:
    """Answers until stdin ends; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    peer = PEERS[name](folder, int(new_tokens), sampled == 'True')
    print(json.dumps({'versions': peer.versions}), file=answers, flush=True)
    for line in sys.stdin:
        prompts = json.loads(line)
        start = time.perf_counter()
        rows = peer(prompts)
        seconds = time.perf_counter() - start
        print(
            json.dumps({'seconds': seconds, 'count': sum(map(len, rows)), 'tokens': rows[0]}), file=answers, flush=True
        )


if __name__ == '__main__':
    main(*sys.argv[1:])
