"""What does the counterfactual cost? Plain pass, packed paired pass, and one separate pass per turn.

    python benchmarks/scoring.py --turns=4,8,16,30

Forward only. 'separate' is the plain pass plus one jitted batched pass per turn over the history with that turn's
feedback masked, cut at the end of the action that followed, with the same head. Goals at T = 16: paired at most 1.35
times plain, separate at least 5 times paired.
"""

import argparse
import statistics

import timing  # first: puts the package on the path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from infopo_jax import packing, score
from infopo_jax.lm import attention, head
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer
from infopo_jax.types import EndReason, Role, Turns


def batch(num_turns: int, *, rows: int, vocab: int, prompt: int, action: int, feedback: int, markup: int) -> Turns:
    """Returns rollouts of equal shape: prompt, then action, markup, feedback, markup, ..., action."""
    rng = np.random.default_rng(0)
    role, turn = [Role.PROMPT] * prompt, [-1] * prompt
    for t in range(num_turns):
        block = [Role.ACTION] * action
        if t < num_turns - 1:
            before, after = markup // 2, markup - markup // 2
            block += [Role.TEMPLATE] * before + [Role.FEEDBACK] * feedback + [Role.TEMPLATE] * after
        role, turn = role + block, turn + [t] * len(block)
    length = -(-len(role) // 8) * 8
    role, turn = role + [Role.PAD] * (length - len(role)), turn + [-1] * (length - len(turn))
    return Turns(
        tokens=jnp.asarray(rng.integers(0, vocab, (rows, length)), jnp.int32),
        role=jnp.tile(jnp.array(role, jnp.int8), (rows, 1)),
        turn=jnp.tile(jnp.array(turn, jnp.int32), (rows, 1)),
        sampled_logp=jnp.zeros((rows, length)),
        turn_reward=jnp.zeros((rows, num_turns)),
        outcome=jnp.zeros((rows,)),
        success=jnp.zeros((rows,), bool),
        valid=jnp.ones((rows,), bool),
        num_turns=jnp.full((rows,), num_turns, jnp.int32),
        end_reason=jnp.full((rows,), EndReason.DONE, jnp.int8),
    )


def separate_passes(graphdef, params, turns: Turns, placeholder, num_turns: int):
    """Returns one call per turn: a jitted pass over the masked history up to the end of the next action."""
    role, turn = np.asarray(turns.role[0]), np.asarray(turns.turn[0])
    calls = []
    for t in range(num_turns - 1):
        end = int(np.flatnonzero((role == Role.ACTION) & (turn == t + 1))[-1]) + 1
        masked = np.flatnonzero((role == Role.FEEDBACK) & (turn == t))
        before, after = turns.tokens[:, : masked[0]], turns.tokens[:, masked[-1] + 1 : end]
        shown = jnp.broadcast_to(placeholder, (before.shape[0], placeholder.shape[0]))
        tokens = jnp.concatenate([before, shown, after], axis=1)
        size = int(np.sum((role == Role.ACTION) & (turn == t + 1)))

        @jax.jit
        def run(params, tokens, size=size):
            model = nnx.merge(graphdef, params)
            hidden = model.trunk(tokens, attention.trunk_place(jnp.ones(tokens.shape, bool)))
            return head.target_stats(hidden[:, -size - 1 : -1], model.vocab_kernel, tokens[:, -size:]).logp

        calls.append(lambda run=run, tokens=tokens: run(params, tokens))
    return calls


def main():
    """Prints the setting and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('layers', 4), ('dim', 256), ('vocab', 2048), ('rows', 16), ('prompt', 256), ('action', 16),
                          ('feedback', 48), ('markup', 4), ('placeholder', 5), ('repeats', 5)):  # fmt: skip
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--turns', default='4,8,16,30')
    parser.add_argument('--dtype', default='float32')
    args = parser.parse_args()
    config = LMConfig(
        vocab_size=args.vocab, dim=args.dim, num_layers=args.layers, num_heads=args.dim // 32, dtype=args.dtype,
        num_kv_heads=max(1, args.dim // 64), head_dim=32, mlp_dim=3 * args.dim, param_dtype=args.dtype,
    )  # fmt: skip
    graphdef, params = nnx.split(Transformer(config, nnx.Rngs(0)))
    placeholder = jnp.arange(args.placeholder, dtype=jnp.int32)
    print(timing.machine())
    print(' '.join(f'{k}={v}' for k, v in vars(args).items()) + '\n')
    rows = []
    for num_turns in map(int, args.turns.split(',')):
        turns = batch(num_turns, rows=args.rows, vocab=args.vocab, prompt=args.prompt, action=args.action,
                      feedback=args.feedback, markup=args.markup)  # fmt: skip
        branch_len, target_len = packing.bounds(turns, placeholder)

        def run(params, turns, shown, branch_len=branch_len, target_len=target_len):
            model = nnx.merge(graphdef, params)
            return score.score(model, turns, shown, branch_len=branch_len, target_len=target_len)

        plain = jax.jit(lambda p, t, run=run: run(p, t, None))
        paired = jax.jit(lambda p, t, run=run: run(p, t, placeholder))
        calls = separate_passes(graphdef, params, turns, placeholder, num_turns)
        seconds = timing.measure(
            {
                'plain': lambda f=plain, t=turns: f(params, t),
                'paired': lambda f=paired, t=turns: f(params, t),
                'masked': lambda calls=calls: [call() for call in calls],
            },
            repeats=args.repeats,
        )
        separate = [a + b for a, b in zip(seconds['plain'], seconds['masked'], strict=True)]
        length = int(np.sum(np.asarray(turns.role[0]) != Role.PAD))
        used = int(packing.pack(turns, placeholder, branch_len=branch_len, target_len=target_len).branch_used[0])
        rows.append({
            'T': num_turns, 'L': length, 'B': used, 'tokens paired/plain': (length + used) / length,
            'plain s': statistics.median(seconds['plain']), 'paired s': statistics.median(seconds['paired']),
            'separate s': statistics.median(separate),
            'paired/plain': timing.ratio(seconds['paired'], seconds['plain']),
            'separate/paired': timing.ratio(separate, seconds['paired']),
        })  # fmt: skip
        print(rows[-1], flush=True)
    print('\n' + timing.table(rows))


if __name__ == '__main__':
    main()
