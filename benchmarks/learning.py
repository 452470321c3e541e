"""Does information gain help to learn? InfoPO with both baselines, GRPO, and each one's placebo, over seeds.

    python benchmarks/learning.py                   # runs what is missing, then prints the table
    python benchmarks/learning.py --table           # prints the table of what is there

The task is ``intent`` with 3 slots, 16 values, 2 of them hidden, 4 turns and sparse reward; asking is rare after the
warm start, so that most groups tie at first. All methods of a seed start from the same warm-started weights. A placebo
shuffles the gains inside each group: what it keeps is a bonus for having informative turns, not information about which
ones they were. Rows are written as runs end; a (method, seed, steps) that is there is not run again.
"""

import argparse
import json
import pathlib
import statistics
import time

import timing  # first: puts the package on the path

import jax
import jax.numpy as jnp
import numpy as np

from infopo_jax import build, build_state, config as config_lib, loops, state as state_lib

METHODS = {  # name -> (estimator, baseline)
    'grpo': ('grpo', 'turn'),
    'infopo turn': ('infopo', 'turn'),
    'placebo turn': ('shuffled_gain', 'turn'),
    'infopo group': ('infopo', 'group'),
    'placebo group': ('shuffled_gain', 'group'),
}
RESULTS = pathlib.Path(__file__).with_name('results') / 'learning_intent.jsonl'
POINT = 10  # updates that are one point of a curve
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student, by number of seeds


def task(method: str, seed: int, steps: int):
    """Returns the config of one run."""
    config = config_lib.base_config()
    config.seed, config.steps = seed, steps
    config.env.update(num_slots=3, num_values=16, num_hidden=2, turn_limit=4, ask_fraction=0.2)
    config.batch.update(prompts=16, group_size=8)
    config.model.update(num_heads=8, num_kv_heads=8, qk_norm=True, rope_theta=100.0)
    config.warmstart.update(steps=600, batch=128, lr=5e-3)
    config.optim.lr = 1e-3
    config.eval.episodes = 512
    config.advantage.estimator, config.info.baseline = METHODS[method]
    config_lib.validate(config)
    return config


def run(loop, config, params, model_config) -> dict:
    """Trains one method from warm-started weights; returns its row."""
    key = loops.seed_keys(config.seed, 1)
    state = build_state.make_state(loop, model_config, key)
    params = jax.tree.map(jnp.copy, params)
    state = state_lib.fresh_state(loop.rule.optimizer, params, state.key, keep_reference=bool(loop.rule.kl_coef))
    start, success, tied, half = time.perf_counter(), [], [], None
    for step in range(1, config.steps + 1):
        state, metrics, _ = loop.step(state)
        success.append(float(metrics['success']))
        tied.append(float(metrics['tied_groups']))
        if half is None and np.mean(success[-5:]) >= 0.5:
            half = step
    held_out, _ = loop.evaluate(state.params, jax.random.fold_in(key, build_state.EVAL), state.step)
    return {
        'steps': config.steps,
        'held_out': float(held_out['success']),
        'updates_to_half': half,
        'tied_first_20': float(np.mean(tied[:20])),
        'turns': float(held_out['turns']),
        'curve': [round(float(x), 3) for x in np.array(success).reshape(-1, POINT).mean(axis=1)],
        'seconds': round(time.perf_counter() - start, 1),
    }


def read(steps: int) -> list[dict]:
    """Returns the rows that are there of runs of so many updates."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return [row for row in rows if row['steps'] == steps]


def missing(steps: int, seed: int) -> list[str]:
    """Returns the methods that have no row of a seed yet."""
    done = {row['method'] for row in read(steps) if row['seed'] == seed}
    return [method for method in METHODS if method not in done]


def table(rows: list[dict]) -> str:
    """Returns mean and 95% interval of the held-out success by method."""
    out = []
    for method in METHODS:
        mine = [row for row in rows if row['method'] == method]
        if not mine:
            continue
        scores = [row['held_out'] for row in mine]
        spread = float('nan')
        if len(scores) > 1:
            spread = statistics.stdev(scores) / len(scores) ** 0.5 * T95.get(len(scores), 2.0)
        halves = [row['updates_to_half'] for row in mine]
        out.append({
            'method': method,
            'held-out success, by seed': ' '.join(f'{score:.2f}' for score in scores),
            'mean': round(statistics.mean(scores), 3),
            '95% interval': f'+- {spread:.2f}',
            'updates to 0.5': ' '.join('-' if h is None else str(h) for h in halves),
            'turns': round(statistics.mean(row['turns'] for row in mine), 2),
        })  # fmt: skip
    return timing.table(out)


def whole_points(text: str) -> int:
    """Returns a number of updates that fills the points of a curve; for argparse."""
    steps = int(text)
    if steps < 1 or steps % POINT:
        raise argparse.ArgumentTypeError(f'must be a multiple of {POINT}, the updates of a point of the curve')
    return steps


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', default='1,2,3,4,5')
    parser.add_argument('--steps', type=whole_points, default=150)
    parser.add_argument('--table', action='store_true', help='print the table of what is there, run nothing')
    return parser.parse_args(argv)


def run_missing(seeds: list[int], steps: int) -> None:
    """Runs what is missing and writes its rows."""
    print(timing.machine())
    built = {method: build.make_loop(task(method, seeds[0], steps)) for method in METHODS}
    for seed in seeds:
        methods = missing(steps, seed)
        if not methods:
            continue
        loop, model_config = built[methods[0]]
        warm, key = task(methods[0], seed, steps).warmstart, loops.seed_keys(seed, 1)
        params = loop.warm_start(
            build_state.make_state(loop, model_config, key).params, key, steps=warm.steps, batch=warm.batch, lr=warm.lr,
            progress=lambda done, loss, seed=seed: print(f'seed {seed} warm start {done} {loss:.3f}', flush=True),
        )  # fmt: skip
        for method in methods:
            if method not in missing(steps, seed):
                continue  # another process was here
            loop, model_config = built[method]
            row = {'method': method, 'seed': seed, **run(loop, task(method, seed, steps), params, model_config)}
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open('a') as file:
                file.write(json.dumps(row) + '\n')
            print(row, flush=True)


def main():
    """Runs what is missing and prints the table."""
    args = arguments()
    if not args.table:
        run_missing([int(seed) for seed in args.seeds.split(',')], args.steps)
    rows = read(args.steps)
    print(f'{timing.machine()}\n\n{table(rows) if rows else f"no results of {args.steps} steps in {RESULTS.name}"}')


if __name__ == '__main__':
    main()
