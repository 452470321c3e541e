"""The config tree: every field declared, locked, described, validated, and stored exactly."""

import inspect
import json
import math
import pathlib
import runpy
import subprocess
import sys

import pytest

from infopo_jax import config as config_lib, config_rules, envs, estimators, users
from infopo_jax.config import base_config

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))


def edited(**fields):
    """Returns the base config with fields set, given as optim__lr=3."""
    config = base_config()
    for name, value in fields.items():
        section, _, leaf = name.rpartition('__')
        (config[section.replace('__', '.')] if section else config)[leaf] = value
    return config


def complaint(config):
    with pytest.raises(ValueError) as error:
        config_lib.validate(config)
    return str(error.value)


def test_user_fields_are_the_knobs_of_the_users():
    declared = {field.removeprefix('user.') for field in config_lib.field_types() if field.startswith('user.')}
    assert list(config_rules.USER_FIELDS) == list(users.USERS) == list(config_rules.CHOICES['user.name'])
    assert declared == {'name'}.union(*config_rules.USER_FIELDS.values())
    for name, fields in config_rules.USER_FIELDS.items():
        assert set(fields) == set(users.knobs(name)), name


def test_base_config_is_locked_and_valid():
    config = base_config()
    config_lib.validate(config)
    with pytest.raises(AttributeError):
        config.optim.lrr = 1.0
    with pytest.raises(TypeError):
        config.steps = 'many'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_validate_accepts_the_configs_that_ship(path):
    get_config = runpy.run_path(str(path))['get_config']
    settings = [(), ('paper',)] if inspect.signature(get_config).parameters else [()]
    for setting in settings:
        config = get_config(*setting)
        config_lib.validate(config)  # raises what is wrong
        assert config_lib.from_dict(config_lib.to_dict(config)) == config


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'optim__lr': 0.0}, ['config.optim.lr = 0.0', 'above 0']),
        ({'optim__lr': math.nan}, ['config.optim.lr = nan', 'above 0']),
        ({'optim__lr': math.inf}, ['config.optim.lr = inf', 'finite']),
        ({'optim__b1': 1.0}, ['config.optim.b1 = 1.0', 'at least 0 and below 1']),
        ({'loss__dual_clip': 1.0}, ['config.loss.dual_clip = 1.0', 'above 1']),
        ({'seed': 1 << 32}, ['config.seed = 4294967296', 'at most 4.29497e+09']),
        ({'num_seeds': 0}, ['config.num_seeds = 0', 'at least 1']),
        ({'env__turn_limit': 0}, ['config.env.turn_limit = 0', 'at least 1']),
        ({'info__baseline': 'trun'}, ["config.info.baseline = 'trun'", "did you mean 'turn'", 'group, turn, none']),
        ({'env__name': 'intnet'}, ["config.env.name = 'intnet'", "did you mean 'intent'"]),
        ({'batch__group_size': 1}, ['config.batch.group_size = 1', 'at least 2']),
        (
            {'batch__group_size': 1, 'advantage__estimator': 'info_only', 'info__baseline': 'turn'},
            ['config.batch.group_size = 1', 'at least 2'],
        ),
        ({'updates__minibatches': 5}, ['config.updates.minibatches = 5', 'divide config.batch.prompts = 32']),
        ({'updates__minibatches': 4, 'updates__microbatches': 3}, ['config.updates.microbatches = 3', '64 rollouts']),
        ({'model__num_heads': 4, 'model__num_kv_heads': 3}, ['config.model.num_kv_heads = 3', 'num_heads = 4']),
        ({'model__head_dim': 15}, ['config.model.head_dim = 15', 'even']),
        ({'optim__decay': 'cosine', 'steps': 5}, ['config.optim.warmup_steps = 5', 'below the 5 updates']),
        ({'env__level': 1}, ['config.env.level = 1', "'intent' has no such knob", 'num_slots']),
        ({'env__kind': 'hosted'}, ["config.env.kind = 'hosted'", "'intent' is jitted"]),
        ({'info__placeholder': ''}, ["config.info.placeholder = ''", 'not be empty']),
        (
            {'user__model': 'x', 'user__patience': 120.0},
            ['config.user.patience = 120.0', 'below config.rollout.call_seconds = 120'],
        ),
        (
            {'user__model': 'x', 'user__timeout': 60.0, 'rollout__call_seconds': 50.0},
            ['config.user.timeout = 60.0', 'call_seconds = 50'],
        ),
        (
            {'user__name': 'scripted', 'user__model': 'gpt-4o-mini'},
            ["config.user.model = 'gpt-4o-mini'", "is for config.user.name = 'openai'; set that, or leave it away"],
        ),
        (
            {'user__base_url': 'http://localhost:8000/v1'},
            ["config.user.base_url = 'http", "config.user.name = 'openai'; set that and config.user.model, or leave"],
        ),
        (
            {'user__temperature': 0.5},
            ["is for config.user.name = 'openai' or 'policy'"],
        ),
        ({'user__name': 'openai'}, ['config.user.model = None', "must be the model's name at the endpoint"]),
        ({'user__name': 'policy', 'user__send_seed': False}, ['config.user.send_seed = False', "= 'openai'"]),
    ],
)
def test_validate_names_field_value_and_constraint(fields, words):
    message = complaint(edited(**fields))
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ('estimator', 'baseline'), [('raw_gain', 'turn'), ('info_only', 'group'), ('info_only', 'none')]
)
def test_validate_accepts_groups_of_one_that_compare_turns_or_nothing(estimator, baseline):
    config = edited(batch__group_size=1, advantage__estimator=estimator, info__baseline=baseline)
    assert config_rules.problems(config_lib.flatten(config)) == []


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'num_seeds': 2}, ['config.num_seeds = 2', 'jitted']),
        ({'rollout__max_tokens': 287}, ['config.rollout.max_tokens = 287', '= 288']),
    ],
)
def test_validate_checks_hosted_rollouts_only_when_hosted(fields, words):
    message = complaint(edited(env__kind='hosted', **fields))
    for word in words:
        assert word in message
    if 'num_seeds' not in fields:
        config_lib.validate(edited(**fields))


def test_validate_asks_for_less_where_a_run_is_only_looked_at():
    config = edited(batch__group_size=1, updates__microbatches=10)
    with pytest.raises(ValueError, match=r'batch\.group_size = 1: must be at least 2.*\n.*updates\.microbatches = 10'):
        config_lib.validate(config)
    config_lib.validate(config, training=False)
    with pytest.raises(ValueError, match=r'eval\.top_p'):
        config_lib.validate(edited(eval__top_p=2.0), training=False)


def test_validate_names_the_nearest_field_of_a_typo():
    config = base_config()
    with config.unlocked():
        config.optim.learning_rate = 1.0
    assert complaint(config) == 'config.optim.learning_rate = 1.0: no such field, did you mean config.optim.lr?'


def test_validate_reports_wrong_types_and_missing_fields():
    config = base_config()
    with config.unlocked():
        del config.optim['lr']
        config.optim.lr = True
    assert 'config.optim.lr = True: must be float, not bool' in complaint(config)
    with config.unlocked():
        del config.optim['lr']
    assert 'config.optim.lr is missing' in complaint(config)


def test_validate_lists_several_problems_within_eight_lines():
    names = ['prompts', 'group_size']
    fields = {f'batch__{name}': 0 for name in names} | {f'model__{n}': 0 for n in ('dim', 'num_layers', 'mlp_dim')}
    message = complaint(edited(**fields, steps=-1, num_seeds=0, optim__lr=-1.0))
    assert len(message.splitlines()) == 7 and message.endswith('and 2 more problems')


def test_rules_cover_declared_fields_only():
    fields = config_lib.field_types()
    named = [name for _, names in config_rules.RANGES for name in names.split()] + list(config_rules.CHOICES)
    assert set(named) <= set(fields) and len(named) == len(set(named))
    numbers = {f for f, kind in fields.items() if kind in (int, float) and not f.startswith('env.')}
    assert numbers <= set(named), 'every number has a range'
    assert config_rules.CHOICES['advantage.estimator'] == tuple(estimators.ESTIMATORS)


def test_to_dict_and_from_dict_round_trip_exactly_through_json():
    config = edited(optim__lr=0.1 + 0.2, env__num_slots=3, loss__dual_clip=3.0, info__placeholder='né <b>')
    restored = config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config))))
    assert restored == config and restored.is_locked
    assert restored.optim.lr.hex() == config.optim.lr.hex()
    assert config_lib.diff(config, restored) == []


def test_from_dict_refuses_unknown_fields_and_keeps_defaults_of_missing_ones():
    with pytest.raises(ValueError, match=r'config\.optim\.lrr.*did you mean config\.optim\.lr'):
        config_lib.from_dict({'optim': {'lrr': 1.0}})
    with pytest.raises(ValueError, match=r'config\.steps.*must be int'):
        config_lib.from_dict({'steps': '3'})
    assert config_lib.from_dict({'steps': 7}) == edited(steps=7)


def test_diff_lists_changed_and_absent_fields():
    other = config_lib.to_dict(edited(optim__lr=1.0, env__num_slots=3))
    del other['seed']
    assert config_lib.diff(base_config(), other) == [
        ('env.num_slots', None, 3),
        ('optim.lr', 3e-4, 1.0),
        ('seed', 0, config_lib.ABSENT),
    ]


def test_check_resume_frees_more_where_a_run_is_only_evaluated():
    saved, free = config_lib.to_dict(base_config()), config_lib.FREE_IN_EVALUATION
    fields = config_lib.field_types().keys()
    assert set(config_lib.FREE_ON_RESUME) < set(free) <= fields | {field.partition('.')[0] for field in fields}
    others = {'user__model': 'x', 'env__user_style': 'terse', 'batch__group_size': 2, 'chat__keep_thinking': False}
    config_lib.check_resume(saved, edited(seed=1, rollout__retries=0, **others), free=free)
    for name, value in others.items():
        with pytest.raises(ValueError, match=name.replace('__', r'\.')):
            config_lib.check_resume(saved, edited(**{name: value}))
    with pytest.raises(ValueError, match=r'model\.dim'):
        config_lib.check_resume(saved, edited(model__dim=32), free=free)


def test_check_resume_ignores_what_does_not_change_past_steps():
    saved = config_lib.to_dict(base_config())
    config_lib.check_resume(saved, edited(steps=500, log__interval=1, eval__interval=5, profile=2))
    elsewhere = config_lib.to_dict(edited(user__model='x', user__base_url='http://there/v1'))
    config_lib.check_resume(elsewhere, edited(user__model='x', user__timeout=9.0, rollout__workers=2))
    with pytest.raises(ValueError, match=r'user\.model'):
        config_lib.check_resume(elsewhere, base_config())
    with pytest.raises(ValueError, match=r'optim\.lr: 0\.0003 in the checkpoint, 0\.1 now'):
        config_lib.check_resume(saved, edited(optim__lr=0.1))
    cosine = edited(optim__decay='cosine')
    with pytest.raises(ValueError, match='steps: 200 in the checkpoint, 500 now'):
        config_lib.check_resume(config_lib.to_dict(cosine), edited(optim__decay='cosine', steps=500))


def test_check_resume_takes_the_default_of_a_field_that_is_newer_than_the_checkpoint():
    saved = config_lib.to_dict(base_config())
    del saved['env']['num_slots'], saved['loss']['unit']
    config_lib.check_resume(saved, base_config())
    with pytest.raises(ValueError, match=r"loss\.unit: '\(absent\)' in the checkpoint, 'turn' now"):
        config_lib.check_resume(saved, edited(loss__unit='turn'))


def test_env_knobs_leaves_out_what_is_not_set():
    assert config_lib.env_knobs(edited(env__num_slots=3, env__turn_cost=0.0)) == {'num_slots': 3, 'turn_cost': 0.0}
    assert set(config_lib.env_knobs(edited(env__num_slots=3))) <= set(envs.knobs('intent'))


@pytest.mark.parametrize('name', [name for name in envs.ENVIRONMENTS if name != 'probe'])  # whose worlds have theirs
def test_every_environment_takes_a_turn_limit(name):
    kind = 'hosted' if hasattr(envs.constructor(name), 'tasks') else 'jitted'
    config = edited(env__name=name, env__kind=kind, env__turn_limit=3)
    assert config_lib.env_knobs(config) == {'turn_limit': 3} and 'turn_limit' in envs.knobs(name)
    config_lib.validate(config)


def test_webshop_server_takes_the_sizes_of_its_shop():
    shop = {'env__name': 'webshop_server', 'env__kind': 'hosted'}
    sizes = {'num_goals': 600, 'num_products': 1000}
    config = edited(**shop, **{f'env__{knob}': value for knob, value in sizes.items()})
    config_lib.validate(config)
    assert config_lib.env_knobs(config) == sizes
    assert 'config.env.num_goals = 1' in complaint(edited(**shop, env__num_goals=1))


def test_describe_explains_every_field_in_order_of_declaration():
    rows = config_lib.describe()
    assert [field for field, _, _ in rows][:3] == ['seed', 'num_seeds', 'steps']
    assert {field: default for field, default, _ in rows} == config_lib.flatten(base_config())
    assert [field for field, _, comment in rows if not comment] == []


def test_nearest_prefers_the_last_part_and_initials():
    names = config_lib.field_types()
    assert config_lib.nearest('group_sze', names) == 'batch.group_size'
    assert config_lib.nearest('optm.lr', names) == 'optim.lr'
    assert config_lib.nearest('optim.learing_rate', names) == 'optim.lr'


def test_import_of_config_leaves_jax_alone():
    code = 'import sys, infopo_jax.config as c; c.describe(); sys.exit("jax" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=CONFIGS[0].parents[1])
