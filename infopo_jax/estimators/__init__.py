"""Estimators: from signals to credit, one family per file, chosen by name.

Every estimator is a pure function

    estimator(signals: types.Signals, *, group_size, key, **hyper) -> types.Credit

and accepts the hyper-parameters of all of them, so that a trainer passes one dict whatever the name; each takes what it
needs and ignores the rest. To add a family, write a file beside these and name its functions here.
"""

import difflib
from collections.abc import Callable

from infopo_jax.estimators.ablations import raw_gain, shuffled_gain
from infopo_jax.estimators.grpo import grpo
from infopo_jax.estimators.infopo import info_only, infopo
from infopo_jax.types import Credit

ESTIMATORS: dict[str, Callable[..., Credit]] = {
    'infopo': infopo,
    'grpo': grpo,
    'info_only': info_only,
    'raw_gain': raw_gain,
    'shuffled_gain': shuffled_gain,
}


def get(name: str) -> Callable[..., Credit]:
    """Returns the estimator of that name.

    Raises:
        ValueError: for an unknown name; the message has the nearest valid name and the list of all.
    """
    if name not in ESTIMATORS:
        nearest = difflib.get_close_matches(str(name), ESTIMATORS, n=1, cutoff=0.0)[0]
        names = ', '.join(ESTIMATORS)
        raise ValueError(f'estimator {name!r} is unknown; did you mean {nearest!r}? Valid names: {names}')
    return ESTIMATORS[name]
