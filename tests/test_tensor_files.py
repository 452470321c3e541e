"""safetensors files against the safetensors library, and every way in which a file can be broken."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.lm import tensor_files

VALUES = {
    'b': np.arange(6, dtype=np.float32).reshape(2, 3),
    'a': np.arange(4).astype(jnp.bfloat16),
    'c.d': np.array([[[1.5, -2.0]]], np.float16),
}


def write(folder, *, shard_bytes=1000):
    tensors = [tensor_files.Tensor(n, v.shape, v.dtype, lambda v=v: v) for n, v in VALUES.items()]
    tensor_files.write(folder, tensors, shard_bytes=shard_bytes)


@pytest.mark.parametrize('shard_bytes, num_files', [(1000, 1), (10, 3), (32, 2)])
def test_write_then_read_gives_the_values_back(tmp_path, shard_bytes, num_files):
    write(tmp_path, shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob('*.safetensors'))) == num_files
    entries = tensor_files.scan(tmp_path)
    assert set(entries) == set(VALUES)
    for name, value in VALUES.items():
        out = tensor_files.read(entries[name])
        assert out.dtype == value.dtype
        np.testing.assert_array_equal(out, value)
    write(tmp_path)  # another layout takes the earlier one's place
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model.safetensors']


def test_write_is_what_the_library_reads(tmp_path):
    safetensors = pytest.importorskip('safetensors')
    write(tmp_path)
    with safetensors.safe_open(tmp_path / 'model.safetensors', 'np') as file:
        assert file.metadata() == {'format': 'pt'}
        np.testing.assert_array_equal(file.get_tensor('b'), VALUES['b'])
        np.testing.assert_array_equal(file.get_tensor('c.d'), VALUES['c.d'])


def test_scan_reads_what_the_library_writes(tmp_path):
    numpy = pytest.importorskip('safetensors.numpy')
    numpy.save_file({n: v for n, v in VALUES.items() if n != 'a'}, tmp_path / 'model.safetensors')
    entries = tensor_files.scan(tmp_path)
    np.testing.assert_array_equal(tensor_files.read(entries['c.d']), VALUES['c.d'])


def test_scan_names_a_truncated_file(tmp_path):
    write(tmp_path)
    path = tmp_path / 'model.safetensors'
    whole = path.read_bytes()
    for size, words in ((len(whole) - 1, 'promises'), (20, 'truncated'), (3, 'truncated'), (0, 'truncated')):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f'model.safetensors.*{words}'):
            tensor_files.scan(tmp_path)
    path.write_bytes(whole[:8] + b'!' + whole[9:])
    with pytest.raises(ValueError, match='JSON does not parse'):
        tensor_files.scan(tmp_path)


def test_read_notices_a_file_that_shrank(tmp_path):
    write(tmp_path)
    entries = tensor_files.scan(tmp_path)
    path = tmp_path / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match='ended early'):
        tensor_files.read(max(entries.values(), key=lambda e: e.offset))


def test_scan_names_what_an_index_lacks(tmp_path):
    write(tmp_path, shard_bytes=10)
    index = tmp_path / tensor_files.INDEX
    placed = json.loads(index.read_text())
    index.write_text(json.dumps({'weight_map': placed['weight_map'] | {'e': placed['weight_map']['a']}}))
    with pytest.raises(ValueError, match='where they are not: e'):
        tensor_files.scan(tmp_path)
    index.write_text(json.dumps(placed))
    (tmp_path / placed['weight_map']['a']).unlink()
    with pytest.raises(ValueError, match='is missing although the index names it'):
        tensor_files.scan(tmp_path)
    index.write_text('{}')
    with pytest.raises(ValueError, match='has no weight_map'):
        tensor_files.scan(tmp_path)


def test_scan_names_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r'neither model[.]safetensors nor'):
        tensor_files.scan(tmp_path)
    (tmp_path / 'pytorch_model.bin').write_bytes(b'')
    with pytest.raises(ValueError, match=r'it holds pytorch_model[.]bin: save it as safetensors'):
        tensor_files.scan(tmp_path)


def test_read_names_a_dtype_that_is_not_float(tmp_path):
    header = json.dumps({'w': {'dtype': 'I8', 'shape': [4], 'data_offsets': [0, 4]}}).encode()
    (tmp_path / 'model.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + b'abcd')
    with pytest.raises(ValueError, match=r'stores I8 \(quantized\?\)'):
        tensor_files.read(tensor_files.scan(tmp_path)['w'])


def test_scan_checks_sizes_against_shapes(tmp_path):
    header = json.dumps({'w': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]}}).encode()
    (tmp_path / 'model.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + b'abcd')
    with pytest.raises(ValueError, match='tensor w has 4 bytes'):
        tensor_files.scan(tmp_path)
