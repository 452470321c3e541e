"""safetensors files, read and written one tensor at a time.

The format (https://github.com/huggingface/safetensors#format): 8 bytes with the header's length N, N bytes of JSON that
give dtype, shape and byte range of every tensor, then the bytes. Plain reads instead of a memory map keep the host's
memory at one tensor: the pages of a map stay resident for as long as it is open.
"""

import collections
import json
import math
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {'F32': np.dtype('float32'), 'BF16': np.dtype(jnp.bfloat16), 'F16': np.dtype('float16')}
MAX_HEADER = 100_000_000  # bytes, the format's own limit
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'


class Entry(NamedTuple):
    """Where a tensor stands."""

    path: pathlib.Path
    dtype: str  # a key of DTYPES, or a name that this package cannot read
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


class Tensor(NamedTuple):
    """A tensor to be written; ``read`` makes its values when their turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def scan(folder: pathlib.Path) -> dict[str, Entry]:
    """Returns what a folder's safetensors files hold, from their headers alone.

    Raises:
        ValueError: there are no such files, one is missing, damaged or truncated, or disagrees with the index.
    """
    if (folder / INDEX).exists():
        placed = _json(folder / INDEX, (folder / INDEX).read_bytes()).get('weight_map')
        if not isinstance(placed, dict):
            raise ValueError(f'{folder / INDEX} has no weight_map: download it again')
        entries = {}
        for name in sorted(set(placed.values())):
            entries |= _header(folder / name)
        wrong = [name for name, file in placed.items() if name not in entries or entries[name].path.name != file]
        if wrong:
            raise ValueError(f'{folder / INDEX} places tensors where they are not: {listed(wrong)}')
        return entries
    if (folder / SINGLE).exists():
        return _header(folder / SINGLE)
    others = sorted(p.name for p in folder.iterdir() if p.suffix in ('.bin', '.pt', '.pth', '.gguf', '.safetensors'))
    found = f'; it holds {listed(others)}: save it as safetensors with transformers' if others else ''
    raise ValueError(f'{folder} has neither {SINGLE} nor {INDEX}{found}')


def listed(names: Iterable[str], most: int = 5) -> str:
    """Returns names for a message, the first few of many."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _json(path, data):
    try:
        found = json.loads(data)
    except ValueError as e:
        raise ValueError(f'{path} is damaged, its JSON does not parse ({e}): download it again') from None
    if not isinstance(found, dict):
        raise ValueError(f'{path} is damaged, its JSON is no object: download it again')
    return found


def _header(path: pathlib.Path) -> dict[str, Entry]:
    if not path.exists():
        raise ValueError(f'{path} is missing although the index names it: download it again')
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(8)
        length = struct.unpack('<Q', head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(MAX_HEADER, size - 8):
            raise ValueError(f'{path} is truncated or no safetensors file ({size} bytes): download it again')
        header = _json(path, file.read(length))
    header.pop('__metadata__', None)
    entries, end = {}, 0
    for name, info in header.items():
        try:
            dtype, shape, (start, stop) = info['dtype'], tuple(map(int, info['shape'])), info['data_offsets']
        except (KeyError, TypeError, ValueError):
            raise ValueError(f'{path} is damaged at tensor {name}: download it again') from None
        if dtype in DTYPES and stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f'{path}: tensor {name} has {stop - start} bytes, its shape {list(shape)} needs others')
        entries[name] = Entry(path, dtype, shape, 8 + length + start)
        end = max(end, stop)
    if 8 + length + end != size:
        raise ValueError(f'{path} has {size} bytes, its header promises {8 + length + end}: download it again')
    return entries


def read(entry: Entry, out: np.ndarray | None = None) -> np.ndarray:
    """Reads one tensor, into ``out`` [shape] of the same dtype where given.

    Raises:
        ValueError: the stored dtype is not float, or the file ended early.
    """
    if entry.dtype not in DTYPES:
        raise ValueError(
            f'{entry.path} stores {entry.dtype} (quantized?); supported are {", ".join(DTYPES)}: save it in bfloat16'
        )
    out = np.empty(entry.shape, DTYPES[entry.dtype]) if out is None else out
    assert out.shape == entry.shape and out.dtype == DTYPES[entry.dtype] and out.flags.c_contiguous
    with entry.path.open('rb') as file:
        file.seek(entry.offset)
        view = memoryview(out.reshape(-1).view(np.uint8))
        while len(view):
            count = file.readinto(view)
            if not count:
                raise ValueError(f'{entry.path} ended early: it changed while it was read')
            view = view[count:]
    return out


def write(folder: pathlib.Path, tensors: Iterable[Tensor], *, shard_bytes: int) -> None:
    """Writes tensors in files of at most ``shard_bytes`` (a larger tensor has one of its own), with an index.

    Files appear under their names when all are complete, and then take the place of an earlier checkpoint's.
    """
    shards = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.num_bytes for t in shards[-1]) + tensor.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    many = len(shards) > 1
    names = [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' if many else SINGLE for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / (name + '.partial'), shard)
    for old in [*folder.glob('model*.safetensors'), folder / INDEX]:
        old.unlink(missing_ok=True)
    for name in names:
        (folder / (name + '.partial')).rename(folder / name)
    if many:
        placed = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(t.num_bytes for shard in shards for t in shard)
        write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': placed})


def write_json(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON object as transformers lays it out."""
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n', encoding='utf-8')


def write_file(path: pathlib.Path, tensors: Iterable[Tensor]) -> None:
    """Writes one file; values are made one tensor at a time."""
    tensors = list(tensors)
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, offset = collections.OrderedDict(__metadata__={'format': 'pt'}), 0
    for t in tensors:
        span = [offset, offset + t.num_bytes]
        header[t.name] = {'dtype': codes[t.dtype], 'shape': list(t.shape), 'data_offsets': span}
        offset = span[1]
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # values start at a multiple of 8
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for t in tensors:
            values = np.ascontiguousarray(t.read())
            assert values.shape == t.shape and values.dtype == t.dtype, t.name
            file.write(memoryview(values.reshape(-1).view(np.uint8)))
