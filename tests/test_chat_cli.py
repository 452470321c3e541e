"""launch/chat.py talks over a pipe with a run's checkpoint and with a folder, and shows what a reply was worth."""

import io
import pathlib
import re
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from chat_templates import tokenizer_of
from models import tiny_model
from talk import tiny_chat

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'launch'))

import chat as chat_launch  # noqa: E402

from infopo_jax import runtime, score  # noqa: E402
from infopo_jax.envs.retail import Retail  # noqa: E402
from infopo_jax.lm import hf  # noqa: E402
from infopo_jax.lm.chat import Chat  # noqa: E402
from infopo_jax.types import Role  # noqa: E402

CHAT = tiny_chat()


@pytest.fixture(scope='module')
def model():
    return tiny_model(CHAT.vocab_size, head=2.0)


SCORING = {'temperature': 1.0, 'kind': 'log_ratio'}


def talk_of(model, chat=CHAT, **options):
    setting = (
        dict(system='', tools=None, max_new_tokens=6, cache_dtype=None, seed=0, temperature=1.0, scoring=SCORING)
        | options
    )
    return chat_launch.Talk(model, chat, chat.content({'role': 'user', 'content': 'nothing'}), **setting)


def test_talk_keeps_the_row_that_training_would_make(model):
    talk, heard = talk_of(model, system='take '), []
    assert talk.say('which colour', heard.append) is None
    first = len(talk.ids)
    gain = talk.say('it is red', heard.append)
    messages = [{'role': 'system', 'content': 'take '}, {'role': 'user', 'content': 'which colour'}]
    prompt = CHAT.prompt(messages)
    assert talk.ids[: len(prompt)] == prompt and talk.roles[len(prompt)] == Role.ACTION
    reply, roles = CHAT.reply([{'role': 'user', 'content': 'it is red'}], stopped=talk.ids[first - 1] in CHAT.stop_ids)
    assert talk.ids[first : first + len(reply)] == reply and talk.roles[first : first + len(reply)] == roles
    assert talk.turns[first] == 0 and talk.turns[-1] == 1 and talk.roles[-1] == Role.ACTION
    said = [i for i, role in zip(talk.ids, talk.roles, strict=True) if role == Role.ACTION]
    assert ''.join(heard) == CHAT.action_text(said[: first - len(prompt)]) + CHAT.action_text(
        said[first - len(prompt) :]
    )
    assert isinstance(gain, float)


@pytest.mark.parametrize('kind', ['log_ratio', 'kl'])
@pytest.mark.parametrize('drawn', [0.0, 1.0])
def test_talk_gain_is_that_of_two_plain_passes_as_training_scores_them(model, drawn, kind):
    """At the run's temperature, whatever the talk is drawn at, and of the run's kind."""
    talk = talk_of(model, temperature=drawn, scoring={'temperature': 2.0, 'kind': kind})
    talk.say('which colour', lambda text: None)
    gain = talk.say('it is red', lambda text: None)
    at = [i for i, (r, t) in enumerate(zip(talk.roles, talk.turns, strict=True)) if r == Role.ACTION and t == 1]
    spot = [i for i, r in enumerate(talk.roles) if r == Role.FEEDBACK]
    masked = talk.ids[: spot[0]] + list(talk.placeholder) + talk.ids[spot[-1] + 1 :]
    shift = len(masked) - len(talk.ids)

    def logp(ids, where):
        logits = np.asarray(model(np.array([ids])))[0].astype(np.float64) / 2.0
        logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(
            -1, keepdims=True
        )
        return logits[[i - 1 for i in where]]

    real, without = logp(talk.ids, at), logp(masked, [i + shift for i in at])
    said = [talk.ids[i] for i in at]
    if kind == 'kl':
        wanted = (np.exp(real) * (real - without)).sum(-1)
    else:
        wanted = (real - without)[range(len(at)), said]
    np.testing.assert_allclose(gain, wanted.mean(), atol=1e-4)


def test_talk_leaves_thoughts_out_where_the_chat_does_and_shows_no_gain():
    chat = Chat(tokenizer_of('qwen3'), keep_thinking=False)
    talk, lines = talk_of(tiny_model(chat.vocab_size, head=2.0), chat), ['hi', 'it is red', 'or blue']
    assert [talk.say(line, lambda text: None) for line in lines[:2]] == [None, None]
    thought = [*chat.encode_action('<think>\nhm\n</think>\n\nok'), chat.stop_id]
    talk.past[-1] = thought, []
    assert talk.say(lines[2], lambda text: None) is None
    past = [(said, [{'role': 'user', 'content': line}]) for (said, _), line in zip(talk.past, lines[1:], strict=False)]
    ids, roles, turns = chat.history([{'role': 'user', 'content': lines[0]}], past)
    assert talk.ids[: len(ids)] == ids and talk.roles[: len(ids)] == roles and talk.turns[: len(ids)] == turns
    assert talk.ids[len(ids) :] == talk.past[2][0] and 'hm' not in chat.decode(ids)


def test_talk_scores_little_that_is_new(model):
    talk = talk_of(model)
    for line in ('which colour', 'it is red', 'it is blue', 'red', 'blue'):
        talk.say(line, lambda text: None)
    before = score._score._cache_size()
    talk.say('red', lambda text: None)
    assert score._score._cache_size() <= before + 1


def test_pieces_hold_back_half_a_character():
    written = []
    pieces = chat_launch.Pieces(CHAT, written.append)
    for token in CHAT.encode('é'):
        pieces.add([token])
    pieces.add([CHAT.stop_id])
    pieces.end()
    assert written == ['é']


def test_talk_with_a_run_begins_as_its_environment_does(model):
    env = Retail(brief=True)
    loop = SimpleNamespace(make_env=lambda: env, tasks={'train': env.tasks('train')})
    system, tools = chat_launch._scene(loop)
    messages, info = env.reset()
    assert (system, tools) == (messages[0]['content'], info['tools']) and 'get_order' in system
    talk = talk_of(model, system=system, tools=tools)
    talk.say('which colour', lambda text: None)
    prompt = CHAT.prompt([messages[0], {'role': 'user', 'content': 'which colour'}], tools)
    assert talk.ids[: len(prompt)] == prompt


@pytest.fixture
def launch(monkeypatch, capsys):
    """Runs the script with lines on stdin; returns code, stdout, stderr."""
    monkeypatch.setattr(runtime, 'silence', lambda: None)
    monkeypatch.setattr(runtime, 'enable_compilation_cache', lambda: None)

    def run(lines, *arguments):
        capsys.readouterr()
        with mock.patch.object(sys, 'stdin', io.StringIO(''.join(f'{line}\n' for line in lines))):
            try:
                code = chat_launch.run(['chat.py', *arguments])
            except SystemExit as ended:
                code = ended.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """A folder as launch/export.py writes it."""
    folder = tmp_path_factory.mktemp('checkpoint')
    hf.save(tiny_model(CHAT.vocab_size, head=2.0, qk_norm=True), str(folder))
    CHAT.tokenizer.save_pretrained(folder)
    return folder


def test_chat_talks_over_a_pipe_with_a_checkpoint(launch, checkpoint):
    config = f'--config={ROOT}/configs/taubench.py', f'--config.model.path={checkpoint}'
    setting = '--max_new_tokens=5', '--temperature=0', '--config.model.dtype=float32'
    code, out, err = launch(['which colour', 'it is red'], *config, *setting)
    assert code == 0 and err.endswith('taubench.py:pretrained, for the fields that are set\n')
    assert [line[:7] for line in out.splitlines() if line[:7] in ('you    ', 'agent  ')] == ['you    ', 'agent  '] * 2
    assert len(re.findall(r'your reply told it [+-]\d\.\d{3} nats per token', out)) == 1
    assert launch(['which colour', 'it is red'], *config, *setting)[1] == out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], 'which run?'),
        ([f'--config={ROOT}/configs/taubench.py'], 'which model? Pass --config.model.path'),
        ([f'--config={ROOT}/configs/quickstart.py'], 'speaks in ids'),
        ([f'--config={ROOT}/configs/taubench.py', '--temperatur=1'], 'did you mean'),
        (['--workdir=/nowhere'], 'holds no config.json'),
        ([f'--config={ROOT}/configs/taubench.py', '--top_k=x'], 'top_k'),
    ],
)
def test_chat_answers_errors_shortly_with_code_2(launch, arguments, words):
    code, _, err = launch([], *arguments)
    assert code == 2 and words in err and len(err.splitlines()) <= 12


def test_chat_prints_its_usage(launch):
    code, out, _ = launch([], '--help')
    assert code == 0 and '--config.model.path' in out
