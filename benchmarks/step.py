"""What does InfoPO cost over GRPO? Whole training steps of both, on the same rollouts.

    python benchmarks/step.py --configs=quickstart,taubench

Both start from the same weights and keys, so they sample the same rollouts; GRPO is the same code with the gain off.
With one update per batch neither needs a scoring pass. Goal: at most 1.15 (the paper's implementation: 1.63 in
wall-clock).
"""

import argparse
import pathlib
import runpy
import statistics

import timing  # first: puts the package on the path

import jax
import jax.numpy as jnp

from infopo_jax import build, build_state, loops

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'


def prepare(name: str, estimator: str, warm_steps: int):
    """Returns a loop and a warm-started state."""
    config = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']()
    config.advantage.estimator = estimator
    loop, model_config = build.make_loop(config)
    key = loops.seed_keys(config.seed, 1)
    state = build_state.make_state(loop, model_config, key)
    params = loop.warm_start(
        state.params,
        key,
        steps=warm_steps,
        batch=config.warmstart.batch,
        lr=config.warmstart.lr,
        progress=lambda *_: None,
    )
    return loop, params, state


def main():
    """Prints the setting and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--configs', default='quickstart,taubench')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument(
        '--warm_steps', type=int, default=100, help='supervised steps before, so that actions are well-formed'
    )
    args = parser.parse_args()
    print(timing.machine() + '\n')
    rows = []
    for name in args.configs.split(','):
        loop, params, state = prepare(name, 'infopo', args.warm_steps)
        other, _, other_state = prepare(name, 'grpo', 1)

        def step(loop, state, params=params):
            copied = jax.tree.map(jnp.copy, (state.opt_state, params, params, state.key, state.step, state.bad_updates))
            names = ('opt_state', 'params', 'reference', 'key', 'step', 'bad_updates')
            return loop.step(type(state)(**dict(zip(names, copied, strict=True))))[1]

        seconds = timing.measure(
            {'infopo': lambda a=loop, b=state: step(a, b), 'grpo': lambda a=other, b=other_state: step(a, b)},
            repeats=args.repeats,
        )
        rows.append({
            'config': name,
            'rollouts': loop.sizes.num_prompts * loop.sizes.group_size,
            'InfoPO s': statistics.median(seconds['infopo']),
            'GRPO s': statistics.median(seconds['grpo']),
            'InfoPO/GRPO': timing.ratio(seconds['infopo'], seconds['grpo']),
        })  # fmt: skip
        print(rows[-1], flush=True)
    print('\n' + timing.table(rows))


if __name__ == '__main__':
    main()
