"""The logger: exact rows, cut back on resume, and a console that suits where it writes."""

import io
import json
import math
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax import console
from infopo_jax.logger import Logger, read_jsonl, truncate_jsonl


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


def make(path, stream=None, **options):
    options = {'interval': 2, 'total_steps': 6, 'tensorboard': False} | options
    return Logger(path, stream=stream or io.StringIO(), **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder):
    """Reads TensorBoard files by their format: length, checksum, record, checksum; returns (events, scalars)."""
    from tensorboardX.proto.event_pb2 import Event

    found, scalars = [], {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = struct.unpack('<Q', data[at : at + 8])[0]
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found.append(event)
            scalars.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
            at += 16 + size
    return found, scalars


def test_log_writes_flat_exact_rows_with_the_clock_apart(tmp_path):
    with make(tmp_path) as logger:
        metrics = {'reward': jnp.float32(0.1), 'turns': 3, 'success': np.bool_(True), 'seconds_step': 1.5}
        logger.log(4, metrics | {'tokens_per_second': 10.0, 'gate': jnp.bfloat16(0.5)})
    assert lines(tmp_path / 'metrics.jsonl') == [
        {
            'step': 4,
            'phase': 'train',
            'reward': float(np.float32(0.1)),
            'turns': 3,
            'success': 1,
            'gate': 0.5,
            'time': {'seconds_step': 1.5, 'tokens_per_second': 10.0},
        }
    ]


def test_log_flushes_each_row(tmp_path):
    logger = make(tmp_path)
    logger.log(1, {'reward': 1.0})
    assert len(lines(tmp_path / 'metrics.jsonl')) == 1
    logger.close()


def test_log_writes_nonfinite_values_as_strings_that_float_reads(tmp_path):
    with make(tmp_path) as logger:
        logger.log(0, {'a': math.nan, 'b': math.inf, 'c': jnp.float32(-math.inf), 'd': np.array([1.0, math.nan])})
    row = lines(tmp_path / 'metrics.jsonl')[0]
    assert (row['a'], row['b'], row['c'], row['d']) == ('NaN', 'Infinity', '-Infinity', [1.0, 'NaN'])
    assert math.isnan(float(row['a'])) and float(row['c']) == -math.inf


@pytest.mark.parametrize('value', ['text', np.zeros((2, 2)), None, object()])
def test_log_refuses_what_is_not_a_number_by_name(tmp_path, value):
    with make(tmp_path) as logger, pytest.raises(ValueError, match="metric 'odd' must be"):
        logger.log(0, {'odd': value})


def test_truncate_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    whole, resumed = tmp_path / 'a', tmp_path / 'b'
    for folder in (whole, resumed):
        folder.mkdir()

    def run(logger, steps):
        for step in steps:
            logger.log(step, {'reward': 0.1 * step})
            if step % 2 == 0:
                logger.log(step, {'success': 0.2 * step}, phase='eval')
                logger.rollouts(step, [{'phase': 'eval', 'turns': [], 'outcome': np.float32(step)}])

    with make(whole) as logger:
        run(logger, range(6))
    with make(resumed) as logger:
        run(logger, range(5))
    with open(resumed / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 5, "phase": "tr')  # a kill in the middle of a row
    with make(resumed) as logger:
        logger.truncate(2)
        run(logger, range(3, 6))
    for name in ('metrics.jsonl', 'rollouts.jsonl'):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
        assert not list(resumed.glob('*.tmp'))


def test_truncate_to_before_the_first_row_and_without_files(tmp_path):
    logger = make(tmp_path)
    logger.truncate(3)
    assert list(tmp_path.iterdir()) == []
    logger.log(1, {'reward': 1.0})
    logger.truncate(0)
    logger.log(1, {'reward': 2.0})
    logger.close()
    assert [row['reward'] for row in lines(tmp_path / 'metrics.jsonl')] == [2.0]


def test_truncate_jsonl_keeps_the_old_file_when_replacing_fails(tmp_path, monkeypatch):
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('killed')))
    with pytest.raises(OSError, match='killed'):
        truncate_jsonl(path, lambda row: row['step'] <= 1)
    assert [row['step'] for row in read_jsonl(path)] == [1, 2]


@pytest.mark.parametrize('tail', [b'{"step": 3', b'{"step": 3}', b'{"st\xc3', b'\x00\x00\n', b'[1, 2'])
def test_read_jsonl_drops_a_half_written_last_line(tmp_path, tail):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert [row['step'] for row in read_jsonl(path)] == [1, 2]


def test_rollouts_keep_text_and_ids_exactly(tmp_path):
    text = 'né\u2028 "x" <script>\r\n\x00'
    with make(tmp_path) as logger:
        logger.rollouts(
            3, [{'phase': 'eval', 'turns': [{'action': text, 'ids': np.arange(2), 'log_ratio': [None, math.nan]}]}]
        )
        logger.rollouts(4, [])
    rows = read_jsonl(tmp_path / 'rollouts.jsonl')
    assert rows == [
        {'step': 3, 'phase': 'eval', 'turns': [{'action': text, 'ids': [0, 1], 'log_ratio': [None, 'NaN']}]}
    ]


def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path):
    with make(tmp_path, tensorboard=True) as logger:
        logger.log(1, {'reward': 0.25, 'seconds': 2.0})
        logger.log(1, {'success': np.array([0.5, 1.0])}, phase='eval')
    _, scalars = events(tmp_path / 'tensorboard')
    assert scalars == {
        ('train/reward', 1): 0.25,
        ('train/seconds', 1): 2.0,
        ('eval/success/seed_0', 1): 0.5,
        ('eval/success/seed_1', 1): 1.0,
    }


def test_truncate_tells_tensorboard_to_purge(tmp_path):
    with make(tmp_path, tensorboard=True) as logger:
        logger.truncate(7)
        logger.log(8, {'reward': 0.5})
    found, scalars = events(tmp_path / 'tensorboard')
    assert [event.step for event in found if event.HasField('session_log')] == [8]
    assert scalars == {('train/reward', 8): 0.5}


def test_console_prints_plain_lines_at_the_interval(tmp_path):
    stream = io.StringIO()
    with make(tmp_path, stream) as logger:
        for step in range(1, 6):
            logger.log(
                step, {'reward': 0.5, 'success': 0.25, 'tied_groups': 0.125, 'tokens_per_second_rollout': 1250.0}
            )
        logger.log(5, {'success': [0.5, 1.0]}, phase='eval')
        logger.log(6, {'reward': 0.5})
    printed = stream.getvalue()
    assert '\r' not in printed and '\x1b' not in printed
    rows = printed.splitlines()
    assert [row.split('/')[0].strip() for row in rows if '/6' in row] == ['2', '4', '6']
    assert '33%' in rows[0] and 'reward  0.500  success  0.250  tied  0.125  1.2k tok/s' in rows[0]
    assert rows[2].split() == ['eval', 'step', '5', 'success', '0.750']


def test_console_rewrites_one_line_on_a_terminal(tmp_path):
    stream = Terminal()
    with make(tmp_path, stream, interval=3) as logger:
        for step in range(1, 4):
            logger.log(step, {'reward': 0.5})
    parts = stream.getvalue().split('\r\x1b[K')
    assert [part.count('\n') for part in parts] == [0, 0, 0, 1, 0]
    assert '█' in parts[3]


def test_console_estimates_the_time_left_without_the_first_step(monkeypatch):
    stream, clock = io.StringIO(), iter([100.0, 103.0])
    monkeypatch.setattr(console.time, 'monotonic', lambda: next(clock))
    bar = console.Console(1, 10, stream)
    bar.row(4, {}, {}, 'train')  # resumed; this step compiles
    bar.row(5, {}, {}, 'train')
    first, second = stream.getvalue().splitlines()
    assert 'eta' not in first and 'eta 0:15' in second


def test_console_copes_with_zero_steps_and_ascii():
    stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    console.Console(1, 0, stream).row(0, {'kl': math.nan}, {}, 'train')
    stream.seek(0)
    assert stream.read().startswith('0/0 ################ 100%')


def test_header_prints_versions_devices_and_parameters_but_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-secret')
    stream = io.StringIO()
    with make(tmp_path, stream) as logger:
        logger.header(num_params=1234567, config='configs/quickstart.py')
        logger.log(1, {'reward': 1.0})
    printed = stream.getvalue()
    for word in ('jax ', 'flax ', 'devices', '1,234,567', 'configs/quickstart.py'):
        assert word in printed
    assert 'sk-secret' not in printed + (tmp_path / 'metrics.jsonl').read_text()
