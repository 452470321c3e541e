"""Imports run one way, and the pure core knows neither a model nor a config."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1] / 'infopo_jax'

# From the ground up; a module may import those of earlier lines, and of its own line where they are one concept.
LAYERS = (
    ('config_fields', 'config_rules', 'presets'),
    ('types', 'runtime', 'termination', 'profiling'),
    ('info_gain', 'packing', 'users'),
    ('advantage', 'losses', 'lm', 'envs'),
    ('estimators', 'metrics', 'sharding', 'checkpoint', 'console'),
    ('score', 'logger', 'samples', 'rollout', 'warmstart', 'state', 'users.policy'),
    ('update', 'report', 'report_draw', 'report_figures', 'report_rollouts'),
    ('evaluate', 'config'),
    ('loops', 'build_user'),
    ('build_mesh',),
    ('build',),
    ('build_state',),
    ('train',),
    ('export',),
)

# What a part of the package may never reach, directly or not: DESIGN.md's one-way list.
NEVER = {
    'types': ['infopo_jax'],
    'info_gain': ['lm', 'config', 'envs', 'rollout', 'score', 'train'],
    'advantage': ['lm', 'config', 'envs', 'rollout', 'score', 'train'],
    'losses': ['lm', 'config', 'envs', 'rollout', 'score', 'train'],
    'packing': ['lm', 'config', 'envs', 'rollout', 'score', 'train'],
    'estimators': ['lm', 'config', 'envs', 'rollout', 'score', 'train'],
    'lm': ['packing', 'score', 'envs', 'rollout', 'update', 'config', 'train'],
    'envs': ['lm', 'score', 'rollout', 'update', 'config', 'train'],
    'score': ['envs', 'rollout', 'update', 'config', 'train', 'estimators', 'advantage'],
    'rollout': ['score', 'update', 'config', 'train', 'estimators'],
    'update': ['envs', 'rollout', 'config', 'train'],
}

FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted(ROOT.rglob('*.py'))
    if path != ROOT / '__init__.py'
}


def imports(path: pathlib.Path) -> set[str]:
    """Returns the package's modules that a file imports, inside functions too, but for types alone not."""
    names = set()
    tree = ast.parse(path.read_text(encoding='utf-8'))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)]
    left_out = {inner for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are absolute'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    inside = {name.removeprefix('infopo_jax.') for name in names if name.startswith('infopo_jax.')}
    return {next(m for m in (name, name.rpartition('.')[0]) if m in FILES) for name in inside}


IMPORTS = {module: imports(path) for module, path in FILES.items()}


def reach(module: str) -> set[str]:
    """Returns every module that importing one of them brings in."""
    seen, waiting = set(), [module]
    while waiting:
        for name in IMPORTS[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def layer(module: str) -> int:
    """Returns the line on which a module, or the folder that it is in, stands."""
    names = [module.rsplit('.', cut)[0] for cut in range(module.count('.') + 1)]
    for name in names:
        for number, line in enumerate(LAYERS):
            if name in line:
                return number
    raise AssertionError(f'{module} is new: put it into LAYERS of this test, and see that DESIGN.md still holds')


@pytest.mark.parametrize('module', FILES)
def test_module_imports_only_what_stands_below_it(module):
    for other in IMPORTS[module]:
        assert layer(other) <= layer(module), f'{module} imports {other}, which stands above it'


def test_imports_have_no_cycle():
    for module in FILES:
        assert module not in reach(module), f'{module} imports itself by way of {IMPORTS[module]}'


@pytest.mark.parametrize('part', NEVER)
def test_part_never_reaches(part):
    members = [module for module in FILES if module == part or module.startswith(f'{part}.')]
    assert members
    for module in members:
        found = reach(module)
        for banned in NEVER[part]:
            bad = [name for name in found if banned in ('infopo_jax', name) or name.startswith(f'{banned}.')]
            assert not bad, f'{module} reaches {bad}'


def test_only_config_build_and_train_read_config_trees():
    readers = {module for module, found in IMPORTS.items() if found & {'config', 'config_fields', 'config_rules'}}
    assert readers <= {'config', 'build', 'train'}
    for module, path in FILES.items():
        if module not in ('config', 'config_fields', 'config_rules', 'presets'):
            assert 'ml_collections' not in path.read_text(encoding='utf-8'), module


def test_only_launch_owns_flags():
    for module, path in FILES.items():
        assert 'absl' not in path.read_text(encoding='utf-8').replace("'absl'", ''), module
