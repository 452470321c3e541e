"""Writes a run's model for transformers: python launch/export.py --workdir=runs/<run> --out=FOLDER"""

import pathlib
import sys

# Run from a clone, installed or not: the package beside this folder is the one that is meant.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import run_folder

USAGE = """
Writes the model of a run as safetensors, config.json and tokenizer: a folder that transformers and this package load.

  python launch/export.py --workdir=runs/mine --out=exported
  python launch/export.py --workdir=runs/mine --out=exported --checkpoint=last --dtype=bfloat16
  python launch/export.py --workdir=runs/mine --out=adapter --adapter        # of a run with config.lora.rank

  --workdir=FOLDER         a run that launch/train.py wrote
  --out=FOLDER             where to write, no run's own folder; an earlier checkpoint there is replaced
  --checkpoint=best|last   best: highest held-out success during training (default); last: the newest
  --dtype=float32|bfloat16 of the weights; default: what the run computed in
  --adapter                writes the adapter alone, as the peft library loads it; without, it is merged into its base

Then, for example:

  from transformers import AutoModelForCausalLM, AutoTokenizer
  model, tokenizer = AutoModelForCausalLM.from_pretrained('exported'), AutoTokenizer.from_pretrained('exported')
"""

OPTIONS = {
    'out': {},
    'checkpoint': {'default': 'best', 'choices': ('best', 'last')},
    'dtype': {'choices': ('float32', 'bfloat16')},
    'adapter': {'action': 'store_true'},
}


def main(config, workdir: str, *, out: str | None, checkpoint: str, dtype: str | None, adapter: bool) -> None:
    """Exports, and says what was written."""
    from infopo_jax import export

    out = str(pathlib.Path(out).expanduser())
    step = export.export(config, workdir, out, best=checkpoint == 'best', dtype=dtype, adapter=adapter)
    files = sorted(path.name for path in pathlib.Path(out).iterdir())
    print(f'{workdir}: {checkpoint} checkpoint, step {step}')
    print(f'written: {out} ({", ".join(files)})')


def run(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    helps = {'-h', '--help'} & set(argv)
    if not helps and not any(word.lstrip('-').split('=')[0] == 'out' for word in argv[1:]):
        return run_folder.complain('where to? Pass --out=FOLDER')
    return run_folder.run(main, argv, usage=USAGE, options=OPTIONS)


if __name__ == '__main__':
    sys.exit(run(sys.argv))
