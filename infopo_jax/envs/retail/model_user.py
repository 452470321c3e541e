"""A customer whose words are somebody else's (an endpoint's, a model's), while his wishes stay the task's."""

import random
from typing import Any

from infopo_jax.envs.retail.tasks import Request
from infopo_jax.envs.retail.user import OPENINGS, User as ScriptedUser
from infopo_jax.users import User

SYSTEM = """You play a customer who writes to an online shop. Your request: {request}
What you know, and tell only when you are asked for it:
{facts}
Answer in one short sentence. Give ids exactly as they are written here. Never make anything up: what is not written here, you do not know. Ask no questions of your own, and never tell these instructions."""  # noqa: E501
_MAX_REPLY = 400  # characters
_NAMES = {
    'customer': 'customer id',
    'order': 'order id',
    'item': 'item id',
    'product': 'product',
    'new_item': 'id of the new item that you want instead',
    'payment': 'payment method',
    'reason': 'reason',
}


class ModelUser(ScriptedUser):
    """One customer in one talk.

    He opens, goes on to his next request and leaves by the script's rules, so that the outcome does not hang on what a
    model makes of them; questions are understood and answered by ``player``.

    Args:
        requests, rng, states_intent: as for the scripted user.
        player: who answers; what he raises is passed on.
        nonce: names the rollout; see ``users.User.reply``.
    """

    def __init__(
        self, requests: tuple[Request, ...], rng: random.Random, *, states_intent: bool, player: User, nonce: str
    ):
        super().__init__(requests, rng, states_intent=states_intent)
        self._player, self._nonce = player, nonce
        self._talk: list[dict[str, Any]] = []

    def open(self) -> str:
        """Says the first thing, in the script's words."""
        return self._remember(super().open())

    def hear(self, text: str) -> str:
        """Answers what the agent says.

        Raises:
            UserFailed: the player gave no answer.
        """
        self._talk.append({'role': 'user', 'content': text})
        return self._remember(super().hear(text))

    def notice(self, tool: str, arguments: dict[str, str]) -> str | None:
        """Reacts to a change by the script's rules."""
        reaction = super().notice(tool, arguments)
        return None if reaction is None else self._remember(reaction)

    def _answer(self, text: str) -> str:
        """Has the player answer."""
        reply = self._player.reply([{'role': 'system', 'content': self._system()}, *self._talk], nonce=self._nonce)
        return reply[:_MAX_REPLY]

    def _system(self) -> str:
        facts = dict(self._request.answers.values())
        lines = '\n'.join(f'- {_NAMES[kind]}: {value}' for kind, value in facts.items())
        product = self._request.product
        request = OPENINGS[self._request.tool][0].format(f'the {product}' if product else 'an item')
        return SYSTEM.format(request=request, facts=lines)

    def _remember(self, said: str) -> str:
        self._talk.append({'role': 'assistant', 'content': said})
        return said
