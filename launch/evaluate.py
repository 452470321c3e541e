"""Evaluates a checkpoint on held-out tasks: python launch/evaluate.py --workdir=runs/<run>

This file is also the config file that the command line reads: ``get_config`` returns the run's own config, so that
fields are overridden and checked as in training.
"""

import argparse
import functools
import json
import pathlib
import sys

# Run from a clone, installed or not: the package beside this folder is the one that is meant.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import command_line

USAGE = """
Evaluates a checkpoint of a run on held-out tasks, prints the result and writes eval.json into the run's folder.

  python launch/evaluate.py --workdir=runs/mine
  python launch/evaluate.py --workdir=runs/mine --checkpoint=last --config.eval.episodes=1024
  python launch/evaluate.py --workdir=runs/mine --config.seed=1 --config.eval.temperature=0

  --workdir=FOLDER                  a run that launch/train.py wrote
  --checkpoint=best|last            best: highest held-out success during training (default); last: the newest
  --config.eval.episodes=N          held-out episodes, whole groups
  --config.eval.temperature=X       of sampling; 0 is greedy
  --config.batch.group_size=K       rollouts per task, the k of pass^k
  --config.seed=N                   other episodes than those that the run evaluates itself on

With fields as the run has them, the numbers are those of the run's own evaluation at that step.
"""


def get_config(workdir: str):
    """Returns the config of the run in ``workdir``; ``command_line`` reads it as --config=evaluate.py:WORKDIR."""
    from infopo_jax import config

    return config.from_dict(json.loads((pathlib.Path(workdir) / 'config.json').read_text(encoding='utf-8')))


def main(config, workdir: str, *, checkpoint: str) -> None:
    """Evaluates, prints and writes eval.json."""
    from infopo_jax import logger, train

    metrics = train.evaluate(config, workdir, best=checkpoint == 'best')
    print(table(metrics, title=f'{workdir}: {checkpoint} checkpoint, step {metrics["step"]}'))
    path = pathlib.Path(workdir) / 'eval.json'
    setting = {'checkpoint': checkpoint, 'seed': config.seed, 'group_size': config.batch.group_size}
    values = {name: logger.number(name, value) for name, value in metrics.items()}
    result = logger.plain(setting | {'eval': config.eval.to_dict()} | values)
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    print(f'written: {path}')


def table(metrics: dict, *, title: str) -> str:
    """Returns reward, success, pass^k, turns and end reasons as lines; several seeds as their mean and range."""
    shown = {name: name for name in ('reward', 'success')}
    shown |= {name: name.replace('_', '^') for name in metrics if name.startswith('pass_')}
    shown |= {'turns': 'turns'}
    ends = {n: n.replace('end_', 'ended: ').replace('_', ' ') for n in metrics if n.startswith('end_')}
    shown |= {name: label for name, label in ends.items() if _values(metrics[name]).max() > 0}
    width = max(map(len, shown.values()))
    return '\n'.join([title, *(f'  {label:<{width}}  {_number(metrics[name])}' for name, label in shown.items())])


def _number(metric) -> str:
    values = _values(metric)
    spread = f'  ({len(values)} seeds, {values.min():.3f} to {values.max():.3f})' if len(values) > 1 else ''
    return f'{values.mean():.3f}{spread}'


def _values(metric):
    import numpy as np

    return np.atleast_1d(np.asarray(metric, np.float64))


def run(argv: list[str]) -> int:
    """Reads --workdir and --checkpoint, and leaves the fields to the command line that all launchers share."""
    if any(word.lstrip('-') in ('h', 'help', 'helpfull', 'helpshort') for word in argv[1:]):
        print(USAGE.strip())
        return 0
    parser = argparse.ArgumentParser(prog=argv[0], add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument('--workdir')
    parser.add_argument('--checkpoint', default='best', choices=('best', 'last'))
    try:
        own, rest = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        return _complain(str(error))
    if own.workdir is None:
        return _complain('which run? Pass --workdir=FOLDER, a folder that launch/train.py wrote')
    if not (pathlib.Path(own.workdir) / 'config.json').is_file():
        return _complain(f'--workdir={own.workdir} holds no config.json; pass a folder that launch/train.py wrote')
    program = [argv[0], f'--config={__file__}:{own.workdir}', f'--workdir={own.workdir}', *rest]
    return command_line.run(functools.partial(main, checkpoint=own.checkpoint), program, usage=USAGE)


def _complain(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return command_line.USER_ERROR


if __name__ == '__main__':
    sys.exit(run(sys.argv))
