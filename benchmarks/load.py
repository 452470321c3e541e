"""How long does a checkpoint take to load, and how much memory does the host need beside the parameters?

    python benchmarks/load.py --layers=28

Writes a random bfloat16 checkpoint of Qwen2.5-1.5B's shape (28 layers are 3.1 GB) into a temporary folder, loads it in
a fresh process each time, and deletes it. Where devices have memory of their own, the goal is that the host peaks at
the largest tensor plus a constant; on a CPU the parameters are host memory too and are taken off. The file has just
been written: it comes from the page cache. transformers, where torch is installed, loads the same file for comparison;
it maps the file, so its parameters are touched once.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import timing  # first: puts the package on the path

import jax
import numpy as np

from infopo_jax.lm import hf, hf_config, hf_names, tensor_files
from infopo_jax.lm.config import LMConfig

QWEN25_1B5 = LMConfig(
    vocab_size=151936, dim=1536, num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128, mlp_dim=8960,
    rope_theta=1e6, qkv_bias=True, param_dtype='bfloat16',
)  # fmt: skip
WAYS = {
    'bfloat16': dict(dtype='bfloat16'),
    'float32': dict(dtype='float32'),
    'bfloat16, 4 devices': dict(dtype='bfloat16', devices=4),
    'transformers bfloat16': dict(dtype='bfloat16', torch=True),
}


def write(folder, config: LMConfig) -> tuple[int, int]:
    """Writes a random checkpoint tensor by tensor; returns bytes of all and of the largest."""
    folder, kind = pathlib.Path(folder), tensor_files.DTYPES['BF16']
    noise = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(kind)
    tensors = []
    for name, shape in shapes(config).items():
        tensors.append(tensor_files.Tensor(name, shape, kind, lambda shape=shape: np.resize(noise, shape)))
    tensor_files.write(folder, tensors, shard_bytes=2_000_000_000)
    tensor_files.write_json(folder / 'config.json', hf_config.write(config) | {'dtype': 'bfloat16'})
    return sum(t.num_bytes for t in tensors), max(t.num_bytes for t in tensors)


def shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a checkpoint."""
    c, heads, kv = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    of = {
        'embed': (c.vocab_size, c.dim), 'final_norm/scale': (c.dim,), 'attn_norm/scale': (c.dim,),
        'mlp_norm/scale': (c.dim,), 'q/kernel': (heads, c.dim), 'k/kernel': (kv, c.dim), 'v/kernel': (kv, c.dim),
        'o/kernel': (c.dim, heads), 'q/bias': (heads,), 'k/bias': (kv,), 'v/bias': (kv,),
        'gate/kernel': (c.mlp_dim, c.dim), 'up/kernel': (c.mlp_dim, c.dim), 'down/kernel': (c.dim, c.mlp_dim),
    }  # fmt: skip
    table = hf_names.sources(config)
    return {t: of[name.removeprefix('blocks/')] for name, source in table.items() for (t,) in source.names}


def memory(field: str) -> int:
    """Returns bytes of this process's memory: VmRSS now, VmHWM at most so far (Linux)."""
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def load_once(folder: str, dtype: str, devices: int = 1, torch: bool = False) -> dict[str, float]:
    """Loads in this process; returns seconds, and bytes above what it had before."""
    if torch:
        from transformers import AutoModelForCausalLM

        before, start = memory('VmRSS'), time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        sizes = [p.numel() * p.element_size() for p in model.parameters()]
        for p in model.parameters():  # it has only mapped the file: touch every page
            p.detach().view(-1)[::1024].float().sum()
    else:
        mesh = jax.make_mesh((devices,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,)) if devices > 1 else None
        jax.block_until_ready(jax.numpy.zeros(8))
        before, start = memory('VmRSS'), time.perf_counter()
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(hf.nnx.state(hf.load(folder, dtype=dtype, mesh=mesh)))]
    on_host = torch or jax.default_backend() == 'cpu'
    return {
        'seconds': time.perf_counter() - start,
        'params': sum(sizes),
        'above': memory('VmHWM') - before - (sum(sizes) if on_host else 0),
    }


def main():
    """Prints the setting and one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--layers', type=int, default=28)
    parser.add_argument('--way', help='of WAYS; a process of its own calls itself with it', choices=WAYS)
    parser.add_argument('--folder')
    args = parser.parse_args()
    if args.way:
        print(json.dumps(load_once(args.folder, **WAYS[args.way])))
        return
    print(timing.machine() + '\n')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        total, largest = write(folder, dataclasses.replace(QWEN25_1B5, num_layers=args.layers))
        for name, way in WAYS.items():
            flags = f'--xla_force_host_platform_device_count={way.get("devices", 1)}'
            command = [sys.executable, __file__, f'--way={name}', f'--folder={folder}']
            done = subprocess.run(
                command, env=timing.os.environ | {'XLA_FLAGS': flags}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f'{name} left out: {done.stderr.strip().splitlines()[-1]}')
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({
                'load as': name,
                'file GB': total / 1e9,
                'params GB': found['params'] / 1e9,
                'seconds': found['seconds'],
                'GB/s': total / 1e9 / found['seconds'],
                'largest tensor GB': largest / 1e9,
                'host peak beside params GB': found['above'] / 1e9,
            })  # fmt: skip
    print(timing.table(rows))


if __name__ == '__main__':
    main()
