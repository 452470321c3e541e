"""Evaluates a checkpoint on held-out tasks: python launch/evaluate.py --workdir=runs/<run>"""

import json
import pathlib
import sys

# Run from a clone, installed or not: the package beside this folder is the one that is meant.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import command_line
import run_folder

USAGE = """
Evaluates a checkpoint of a run on held-out tasks, prints the result and writes it as JSON.

  python launch/evaluate.py --workdir=runs/mine
  python launch/evaluate.py --workdir=runs/mine --checkpoint=last --config.eval.episodes=1024
  python launch/evaluate.py --workdir=runs/mine --config.seed=1 --config.eval.temperature=0
  python launch/evaluate.py --workdir=runs/mine --config.env.user_style=stubborn --out=runs/mine/stubborn.json

  --workdir=FOLDER                  a run that launch/train.py wrote
  --checkpoint=best|last            best: highest held-out success during training (default); last: the newest
  --out=FILE                        where the result goes, no file of a run's own; default: eval.json in its folder
  --config.eval.episodes=N          held-out episodes, whole groups
  --config.eval.temperature=X       of sampling; 0 is greedy
  --config.batch.group_size=K       rollouts per task, the k of pass^k
  --config.seed=N                   other episodes than those that the run evaluates itself on
  --config.env.user_style=NAME      how a scripted user talks: plain, terse, verbose, distracted, stubborn; in retail,
                                    colbench, webshop with num_hidden, our gyms of usergym but function and search
  --config.user.name=NAME ...       who answers: scripted, openai, policy; begins with none of the run's config.user

With fields as the run has them, the numbers are those of the run's own evaluation at that step. The result lists under
"changed" the fields that differ from config.json.
"""

IN_EVERY_RUN = 'checkpoints', 'metrics.jsonl'
# What a run writes beside its figures (*.png): files, and folders with all that is in them.
OF_RUNS = 'config.json', 'rollouts.jsonl', 'report.html', 'tensorboard', 'profile', *IN_EVERY_RUN


def main(config, workdir: str, *, checkpoint: str, out: str | None) -> None:
    """Evaluates, prints and writes the result."""
    from infopo_jax import config as config_lib, logger, train

    path = pathlib.Path(workdir) / 'eval.json' if out is None else pathlib.Path(out)
    _check_out(path)
    metrics = train.evaluate(config, workdir, best=checkpoint == 'best')
    print(table(metrics, title=f'{workdir}: {checkpoint} checkpoint, step {metrics["step"]}'))
    setting = {'checkpoint': checkpoint, 'seed': config.seed, 'group_size': config.batch.group_size}
    setting['changed'] = {field: now for field, _, now in config_lib.diff(run_folder.get_config(workdir), config)}
    values = {name: logger.number(name, value) for name, value in metrics.items()}
    result = logger.plain(setting | {'eval': config.eval.to_dict()} | values)
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    print(f'written: {path}')


def _check_out(path: pathlib.Path) -> None:
    """Raises UsageError for a place where no result can be written, or where it would overwrite what a run wrote."""
    if not path.parent.is_dir():
        raise command_line.UsageError(f'--out={path}: there is no folder {path.parent}')
    if path.is_dir():
        raise command_line.UsageError(f'--out={path} is a folder: name a file, such as --out={path / "result.json"}')
    file = path.resolve()
    for folder in file.parents:
        first = file.relative_to(folder).parts[0]
        is_run = any((folder / name).exists() for name in IN_EVERY_RUN)
        if is_run and (first in OF_RUNS or first.endswith('.png')):
            raise command_line.UsageError(
                f'--out={path} is what the run in {folder} writes itself: name another file, such as '
                f'--out={folder / "result.json"}'
            )


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
    """Runs the command line; returns the exit code."""
    options = {'checkpoint': {'default': 'best', 'choices': ('best', 'last')}, 'out': {}}
    return run_folder.run(main, argv, usage=USAGE, options=options)


if __name__ == '__main__':
    sys.exit(run(sys.argv))
