"""Trains an agent: python launch/train.py --config=configs/quickstart.py"""

import pathlib
import sys

# Run from a clone, installed or not: the package beside this folder is the one that is meant.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import command_line

USAGE = """
Trains an agent by InfoPO: it talks over several turns and learns to ask for what it needs, then to act.

  python launch/train.py --config=configs/quickstart.py
  python launch/train.py --config=configs/quickstart.py --config.seed=1 --config.optim.lr=1e-4
  python launch/train.py --config=configs/taubench.py --workdir=runs/mine      # again: resumes
  python launch/train.py --config=configs/taubench.py --config.advantage.estimator=grpo
  python launch/train.py --config=configs/taubench.py --config.model.path=Qwen/Qwen2.5-7B-Instruct

  --config=FILE          a Python file with get_config(); see configs/
  --config=FILE:SETTING  one of its settings, see its head: small (models from random weights), pretrained, paper.
                         Without, what the fields call for: of taubench.py --config.model.path=FOLDER takes pretrained
  --config.FIELD=VALUE   sets one of the fields below, --FIELD=VALUE too; None takes back what the file sets.
                         --noFIELD is --FIELD=false
  --workdir=FOLDER       metrics, checkpoints and report.html go there; default runs/<config>-<time>.
                         A folder that holds a checkpoint resumes from it.

INFOPO_JAX_CACHE=off keeps compiled programs off the disk; a path there names another folder for them.
"""


def main(config, workdir: str) -> None:
    """Imports the trainer, and with it JAX, only once the command line has been found right."""
    from infopo_jax import runtime

    runtime.keep_memory()
    from infopo_jax import train

    train.main(config, workdir)


if __name__ == '__main__':
    sys.exit(command_line.run(main, sys.argv, usage=USAGE))
