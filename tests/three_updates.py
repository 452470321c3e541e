"""Three updates of a run that ships, with a tiny model and few rollouts: that it runs through, and what it leaves."""

import json
import math
import pathlib
import runpy

from infopo_jax import config as config_lib, train
from infopo_jax.logger import read_jsonl

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
    'steps': 3, 'batch.prompts': 2, 'batch.group_size': 2, 'eval.interval': 0, 'eval.episodes': 4, 'log.rollouts': 2,
    'log.tensorboard': False, 'warmstart.steps': 1, 'warmstart.batch': 4, 'model.dim': 16, 'model.num_layers': 1,
    'model.mlp_dim': 16,
}  # fmt: skip


def check_three_updates(name, workdir, **fields):
    """Trains configs/<name>.py with other values of some fields; checks the rows and what is left.

    Args:
        name: of the config.
        workdir: an empty folder.
        **fields: of the config, env__level for env.level.
    """
    config = runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']()
    config.update_from_flattened_dict({field.replace('__', '.'): value for field, value in fields.items()})
    config_lib.validate(config)  # as it ships
    config.update_from_flattened_dict(TINY)
    config_lib.validate(config)
    train.main(config, str(workdir))
    check_rows(workdir)
    _check_folder(workdir, config)


def check_rows(workdir):
    """Checks that three updates were made, none of them refused, and that every number is finite; returns the rows."""
    rows = read_jsonl(workdir / 'metrics.jsonl')
    assert [(row['step'], row['phase'][0]) for row in rows] == [(0, 'e'), (1, 't'), (2, 't'), (3, 't'), (3, 'e')]
    for row in rows:
        numbers = [value for name, value in row.items() if name not in ('phase', 'time')]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers), row
        assert row.get('skipped', 0) == 0 and row['failed'] == 0
    return rows


def _check_folder(workdir, config):
    """Checks the report, and that the run can be taken up again where it ended."""
    assert (workdir / 'report.html').stat().st_size > 10_000
    assert config_lib.from_dict(json.loads((workdir / 'config.json').read_text())) == config
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert train.Checkpointer(workdir).steps()[-1] == 3
    train.main(config, str(workdir))
    assert (workdir / 'metrics.jsonl').read_bytes() == before
