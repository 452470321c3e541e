"""Packaging of infopo_jax; tool settings stand in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

setup(
    name='infopo_jax',
    version='0.1.0',
    description='InfoPO (information-driven policy optimization, arXiv 2603.00656) for multi-turn agents, in pure JAX',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['infopo_jax', 'infopo_jax.*']),
    package_data={'infopo_jax': ['*.html', '*.css', '*.js']},
    install_requires=[
        'absl-py>=2.1,<3',
        'bm25s>=0.3,<0.4',
        'flax>=0.12,<0.13',
        'huggingface_hub>=0.34,<3',
        'jax>=0.10,<0.12',
        'jinja2>=3.1,<4',
        'matplotlib>=3.9,<4',
        'ml-collections>=1.0,<2',
        'numpy>=2.0,<3',
        'optax>=0.2.5,<0.3',
        'orbax-checkpoint>=0.11,<0.13',
        'tensorboardX>=2.6,<3',
        'tokenizers>=0.22,<1',
        'transformers>=4.56,<6',
    ],
    extras_require={
        'test': [
            'gymnasium>=1,<2',
            'httpx>=0.27,<1',
            'hypothesis>=6.100,<7',
            'pytest>=8.3,<10',
            'pytest-xdist>=3.6,<4',
            'ruff>=0.12,<1',
        ],
        'gymnasium': ['gymnasium>=1,<2'],
        'usergym': ['gymnasium>=1,<2', 'pyarrow>=16'],  # UserRL's gyms; ours need neither
        'users': ['httpx>=0.27,<1'],  # language models behind an endpoint as users
        'parity': ['torch==2.13.0', 'peft>=0.17,<1'],  # compares the decoder and adapters with transformers' own
        'cuda': ['jax[cuda12]>=0.10,<0.12'],
        'tpu': ['jax[tpu]>=0.10,<0.12'],
        'notebooks': ['jupyterlab>=4.3,<5'],
    },
)
