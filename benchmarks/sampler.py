"""How fast is sampling, against transformers' generate and google-tunix's vanilla sampler, side by side in one run?

    python benchmarks/sampler.py --tunix-python=TUNIX_VENV/bin/python              # on a CPU: four small Qwen3 models
    python benchmarks/sampler.py --shape=qwen2.5-7b --batch=64,256                  # on an accelerator

All read the same random checkpoint and continue the same prompts, with nothing to stop them; calls are interleaved, and
the medians of the repeats stand in the table. Greedy continuations are compared first: the peers run the same model.
tunix lives in an environment of its own (pip install google-tunix); where there is none, a line says so.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

import timing  # first: it puts the package on the path

import jax
from flax import nnx

from infopo_jax.lm import generate, hf
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer

SMALL = {  # name -> (layers, width, vocabulary, batch)
    '4x256': (4, 256, 2048, 16),
    '4x256, vocabulary 32,768': (4, 256, 32768, 16),
    '4x256, batch 1': (4, 256, 2048, 1),
    '8x512': (8, 512, 2048, 16),
}
LARGE = {  # Qwen2.5's
    'qwen2.5-1.5b': dict(dim=1536, num_layers=28, num_heads=12, num_kv_heads=2, mlp_dim=8960, tie_embeddings=True),
    'qwen2.5-7b': dict(dim=3584, num_layers=28, num_heads=28, num_kv_heads=4, mlp_dim=18944, tie_embeddings=False),
}
LIMITS = {'H100': (3.35e12, 989e12), 'H200': (4.8e12, 989e12)}  # bytes/s, bf16 FLOP/s without sparsity; SXM data sheets


class Peer:
    """A process of sampler_peers.py; ``fault`` says why there is none."""

    def __init__(self, name: str, python: str, folder: str, new_tokens: int, sampled: bool):
        self.fault, self.versions = None, name
        script = pathlib.Path(__file__).with_name('sampler_peers.py')
        command = [str(pathlib.Path(python).expanduser()), str(script), name, folder, str(new_tokens), str(sampled)]
        self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115 (lives as long as the process)
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
            )
        except OSError as error:
            self.fault = str(error)
            return
        first = self._answer()
        self.versions = name if first is None else first['versions']

    def __call__(self, prompts) -> dict | None:
        """Generates; returns {'seconds', 'count', 'tokens'}, or None once the process has failed."""
        if self.fault:
            return None
        self.process.stdin.write(json.dumps(prompts) + '\n')
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        self.fault = (self.log.read().strip().splitlines() or ['ended without a word'])[-1][:200]
        return None

    def close(self):
        """Ends the process."""
        if not self.fault:
            self.process.stdin.close()
            self.process.wait()


def ours(model, prompts, new_tokens: int, *, sampled: bool, group_size: int = 1, cache_dtype=None):
    """Returns a function that generates once and answers as a peer does."""
    sampler = generate.Sampler(model, cache_dtype=cache_dtype)

    def call():
        start = time.perf_counter()
        out = sampler.generate(
            prompts[::group_size],
            key=jax.random.key(0),
            max_new_tokens=new_tokens,
            temperature=float(sampled),
            group_size=group_size,
        )
        seconds = time.perf_counter() - start
        return {'seconds': seconds, 'count': int(out.lengths.sum()), 'tokens': out.ids(0)}

    return call


def small(name: str, args) -> list[dict]:
    """Compares on one small Qwen3 checkpoint; returns a row per sampler."""
    layers, dim, vocab, batch = SMALL[name]
    config = LMConfig(
        vocab_size=vocab, dim=dim, num_layers=layers, num_heads=dim // 64, num_kv_heads=dim // 128, head_dim=64,
        mlp_dim=3 * dim, rope_theta=1e6, qk_norm=True, max_position=4096,
    )  # fmt: skip
    rng = random.Random(0)
    prompts = [[rng.randrange(1, vocab) for _ in range(args.prompt)] for _ in range(batch)]
    with tempfile.TemporaryDirectory() as folder:
        hf.save(Transformer(config, nnx.Rngs(0)), folder)
        model = hf.load(folder, dtype='float32')
        pythons = {'transformers_dynamic': sys.executable, 'transformers_static': sys.executable}
        pythons['tunix'] = args.tunix_python
        peers = {
            peer: {mode: Peer(peer, python, folder, args.new, mode) for mode in (False, True)}
            for peer, python in pythons.items()
            if peer in args.peers.split(',')
        }
        agree(model, prompts, peers, args.new)
        calls = {'this package': ours(model, prompts, args.new, sampled=True)}
        calls |= {peer: (lambda p=modes[True]: p(prompts)) for peer, modes in peers.items()}
        if batch > 1:
            grouped = ours(model, prompts, args.new, sampled=True, group_size=8)
            calls[f'this package, {batch // 8} groups of 8'] = grouped
        rows = compare(name, calls, args.repeats)
        for modes in peers.values():
            for peer in modes.values():
                peer.close()
        faults = {name: modes[True].fault for name, modes in peers.items() if modes[True].fault}
    for peer, fault in faults.items():
        print(f'{peer} left out: {fault}')
    return rows


def agree(model, prompts, peers, new_tokens) -> None:
    """Prints how many greedy tokens of the first row each peer has in common with us before the first difference."""
    mine = ours(model, prompts, new_tokens, sampled=False)()['tokens']
    for modes in peers.values():
        answer = modes[False](prompts)
        if answer is None:
            continue
        same = next((i for i, (a, b) in enumerate(zip(mine, answer['tokens'], strict=False)) if a != b), len(mine))
        print(f'  {modes[False].versions}: {same} of {len(mine)} greedy tokens agree')


def compare(name, calls, repeats) -> list[dict]:
    """Times the calls in turn and returns their rows."""
    seconds, count = {who: [] for who in calls}, {}
    for round_ in range(repeats + 1):  # the first one compiles
        for who, call in calls.items():
            answer = call()
            if answer is not None:
                count[who] = answer['count']
                seconds[who] += [answer['seconds']] if round_ else []
    rows = []
    for who, times in seconds.items():
        row = {'model': name, 'sampler': who, 'tokens/s': '-', 'ours / theirs': '-'}
        if times:
            row['tokens/s'] = round(count[who] / statistics.median(times))
            row['ours / theirs'] = round(timing.ratio(times, seconds['this package']), 2)
        rows.append(row)
    return rows


def large(shape: str, batch: int, args) -> dict:
    """Times one of Qwen2.5's shapes with random bf16 weights; returns a row."""
    config = LMConfig(
        vocab_size=151936, head_dim=128, rope_theta=1e6, qkv_bias=True, dtype='bfloat16', param_dtype='bfloat16',
        **LARGE[shape],
    )  # fmt: skip
    model = nnx.jit(lambda: Transformer(config, nnx.Rngs(0)))()
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.split(model)[1]))
    size -= 0 if config.tie_embeddings else model.embed[...].nbytes  # only a few rows of it are read
    rng = random.Random(0)
    prompts = [[rng.randrange(1, 150_000) for _ in range(args.prompt)] for _ in range(batch)]
    first, whole = (ours(model, prompts, n, sampled=True, cache_dtype=args.cache_dtype) for n in (1, args.new))
    first(), whole()
    times = [(first()['seconds'], whole()['seconds']) for _ in range(args.repeats)]
    prefill, total = (statistics.median(t) for t in zip(*times, strict=True))
    step = (total - prefill) / (args.new - 1)
    kind = jax.devices()[0].device_kind
    bandwidth, flops = next((v for k, v in LIMITS.items() if k in kind), (float('nan'), float('nan')))
    width = 1 if args.cache_dtype == 'int8' else 2
    cached = 2 * width * config.num_layers * config.num_kv_heads * 128 * batch * (args.prompt + args.new / 2)
    multiplied = 2 * (size / 2) * batch * args.prompt
    return {
        'shape': shape, 'batch': batch, 'cache': args.cache_dtype or 'bfloat16',
        'tokens/s': round(batch * args.new / total),
        'ms a step': round(step * 1e3, 2),
        'of the bandwidth': round((size + cached) / step / bandwidth, 2),
        'prefill s': round(prefill, 2),
        'of the matrix products': round(multiplied / prefill / flops, 2),
    }  # fmt: skip


def main():
    """Prints the setting and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tunix-python', default='python-with-tunix', help="interpreter of tunix's environment")
    parser.add_argument('--peers', default='transformers_dynamic,transformers_static,tunix')
    parser.add_argument('--models', default=';'.join(SMALL), help='semicolons between them')
    parser.add_argument('--shape', choices=list(LARGE), help='on an accelerator')
    parser.add_argument('--batch', default='64,256', help='with --shape')
    parser.add_argument('--cache_dtype', choices=('bfloat16', 'int8'), help='with --shape')
    parser.add_argument('--prompt', type=int, help='tokens; 64, with --shape 1024')
    parser.add_argument('--new', type=int, help='tokens; 64, with --shape 512')
    parser.add_argument('--repeats', type=int, default=7)
    args = parser.parse_args()
    args.prompt = args.prompt or (1024 if args.shape else 64)
    args.new = args.new or (512 if args.shape else 64)
    print(timing.machine() + '\n')
    rows = []
    if args.shape:
        for batch in map(int, args.batch.split(',')):
            rows.append(large(args.shape, batch, args))
            print(rows[-1], flush=True)
    else:
        for name in args.models.split(';'):
            print(name, flush=True)
            rows += small(name, args)
    print('\n' + timing.table(rows))


if __name__ == '__main__':
    main()
