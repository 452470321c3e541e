"""The environment ``usergym``: one of the gyms, by name."""

import importlib
import random
from typing import Any

from infopo_jax.envs.text import Message
from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.eight import EIGHT

OWN = {  # our own, which need no language model; imported on use
    'intention': 'infopo_jax.envs.usergym.intention:Intention',
    'travel': 'infopo_jax.envs.usergym.travel:Travel',
    'turtle': 'infopo_jax.envs.usergym.turtle:Turtle',
    'telepathy': 'infopo_jax.envs.usergym.telepathy:Telepathy',
    'function': 'infopo_jax.envs.usergym.function:Function',
    'persuade': 'infopo_jax.envs.usergym.persuade:Persuade',
    'search': 'infopo_jax.envs.usergym.search:Search',
}
_ADAPTER = 'infopo_jax.envs.usergym.userrl:UserRL'


class UserGym:
    """A gym of UserRL's kind; implements ``TextEnv``, ``Scored`` and ``Teachable``.

    The agent makes moves with the tool interact_with_env(choice, content). Knobs that are None keep the gym's default.

    Args:
        gym: one of our own, generated from seeds and free of language models (intention, travel, turtle, telepathy,
            function, persuade, search), or one of UserRL's packages (FunctionGym, TelepathyGym, TurtleGym, PersuadeGym,
            IntentionGym, TravelGym, SearchGym, TauGym). The own version of TauGym is the environment retail.
        level: difficulty of our own, 1 to 3.
        turn_limit: moves per episode.
        turn_cost: our own: taken off the outcome for each move.
        reward: our own: 'share', partial credit, or 'sparse', 1 only if everything is right.
        user_style: our own, except function and search: how the user talks; see ``users.styles``.
        data: UserRL's: where its tasks are; None: the package's own.
        reward_line: UserRL's: replies end with the reward of their turn.
        user: UserRL's: an ``OpenAIUser``, whose model plays the user and judges; no other can.

    Raises:
        ValueError: an unknown gym, a knob that the gym does not have, or a value that it refuses.
    """

    def __init__(
        self,
        gym: str = 'intention',
        *,
        level: int | None = None,
        turn_limit: int | None = None,
        turn_cost: float | None = None,
        reward: str | None = None,
        user_style: str | None = None,
        data: str | None = None,
        reward_line: bool | None = None,
        user: Any = None,
    ):
        knobs = {'turn_limit': turn_limit}
        own = {'level': level, 'turn_cost': turn_cost, 'reward': reward, 'user_style': user_style}
        theirs = {'data': data, 'reward_line': reward_line, 'user': user}
        if gym not in OWN and gym not in EIGHT:
            raise ValueError(f'gym must be one of {", ".join([*OWN, *EIGHT])}, got {gym!r}')
        fits, foreign = (own, theirs) if gym in OWN else (theirs, own)
        for knob, value in foreign.items():
            if value is not None:
                raise ValueError(f'gym {gym!r} has no knob {knob!r}; it has {", ".join([*knobs, *fits])}')
        module, _, name = OWN.get(gym, _ADAPTER).partition(':')
        make = getattr(importlib.import_module(module), name)
        values = {knob: value for knob, value in (knobs | fits).items() if value is not None}
        self.gym = make(**values) if gym in OWN else make(gym, **values)
        self.outcome_range, self.max_turns = self.gym.outcome_range, self.gym.max_turns
        self.placeholder = self.gym.placeholder

    def tasks(self, split: str) -> list[str]:
        """Returns the task ids of split 'train' or 'test'; the two are disjoint."""
        return self.gym.tasks(split)

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts ``options['task']``, by default a training task drawn by the seed."""
        return self.gym.reset(seed=seed, options=options)

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Answers the agent's text."""
        return self.gym.step(text)

    def score(self, num_turns: int) -> float:
        """Returns the outcome of the episode if it is cut after so many turns; see ``envs.text.Scored``."""
        return self.gym.score(num_turns)

    def expert(self) -> str:
        """Returns the next action of our own gyms' expert, who reads no more than the agent is shown."""
        return self._own('expert').expert()

    def random_action(self, rng: random.Random) -> str:
        """Returns a random legal action in one of our own gyms; it copies what is known."""
        return self._own('random player').random_action(rng)

    def _own(self, what: str) -> Gym:
        if not isinstance(self.gym, Gym):
            raise ValueError(f"UserRL's gyms have no {what}; ours have: {', '.join(OWN)}")
        return self.gym

    def corpus(self) -> list[str]:
        """Returns texts on which a tokenizer is trained."""
        return self.gym.corpus()

    def special_tokens(self) -> list[str]:
        """Returns words that the tokenizer keeps whole."""
        return self.gym.special_tokens()

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one supervised transition: syntax and copying, no strategy."""
        return self.gym.example(rng)
