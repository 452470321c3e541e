"""Five tiny environments with known best behaviour, one failure mode each.

All share one game. The user wants two values, ``v3 v1``, and either shows them in the prompt or waits to be asked::

    <user> v3 v1 <agent> [say v3 v1 <end>]                                    values shown
    <user> ? ? <agent> [ask <end>] <user> v3 v1 <agent> [say v3 v1 <end>]     values hidden

``say`` ends the episode. A probe changes what answers, errors and outcomes mean; see the rules below. The idea is that
of the probe environments by which value-based agents are debugged, e.g. keraJLi/rejax ``tests/environments.py``.
"""

import dataclasses

import jax
import jax.numpy as jnp

from infopo_jax.envs.array import Example
from infopo_jax.envs.intent import PLACEHOLDER_SHARE, Worded, complete_goal, draw_goal, left_align, pick
from infopo_jax.types import pytree_dataclass

NUM_SLOTS, NUM_VALUES, NUM_NOISE, MAX_TURNS = 2, 8, 4, 4
TIED_OUTCOME = 0.7  # float32 cannot hold it: naive mean and std of equal 0.7s leave 0.06, not 0
WORDS = ('<pad>', '<user>', '<agent>', '<end>', 'ask', 'say', '?', 'ok', '<error>', '<no_information>')
PAD, USER, AGENT, END, ASK, SAY, UNKNOWN, OK, ERROR, NOTHING = range(len(WORDS))
VALUE = len(WORDS)  # id of v0
NOISE = VALUE + NUM_VALUES  # id of n0


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a probe changes in the game."""

    shown: bool = False  # the prompt shows the values
    informs: bool = False  # the first question is answered with the values; every other answer is 'ok'
    noise: bool = False  # questions are answered with two random words that mean nothing
    suggests: bool = False  # an error message suggests two random values
    earliest: int = 0  # 'say' before this turn is never right
    tied: bool = False  # every outcome is TIED_OUTCOME


@dataclasses.dataclass(frozen=True)
class NoInfo(Rule):
    """Feedback carries no information: the values are shown, and answers are noise.

    Best behaviour: say at once. A right implementation shows gains of about 0 at every turn, for noise helps no later
    action; a bonus for novelty or for going on shows here.
    """

    shown: bool = True
    noise: bool = True


@dataclasses.dataclass(frozen=True)
class FirstTurn(Rule):
    """Only the first question's answer informs; later ones are answered 'ok'.

    Best behaviour: ask, say. A right implementation shows, where ``say`` follows the first answer at once, a gain that
    grows to log(8) on both value tokens, 2 log(8) / 4 = 1.04 nats a token, and about 0 at later turns; gain that lands
    on another turn is an index off by one.
    """

    informs: bool = True


@dataclasses.dataclass(frozen=True)
class Delayed(Rule):
    """Information is used two turns later: ``say`` counts from the third turn on.

    Best behaviour: ask, ask (its answer is 'ok'), say. A right implementation shows about 0 at turn 0 with horizon 1,
    where the next action is a mere ask, and with horizon 2 half the gain that FirstTurn shows.
    """

    informs: bool = True
    earliest: int = 2


@dataclasses.dataclass(frozen=True)
class Tied(Rule):
    """Every outcome ties, at 0.7; ``success`` alone tells who was right.

    Best behaviour: ask, say. A right implementation shows outcome advantages of exactly 0, a gate of exactly 1/2, no
    update from GRPO (but a KL term), and an InfoPO agent that asks.
    """

    informs: bool = True
    tied: bool = True


@dataclasses.dataclass(frozen=True)
class ErrorSurprise(Rule):
    """Only error messages surprise: they suggest values, which mean nothing; the real ones are shown.

    Best behaviour: say at once, never a malformed action. A right implementation shows no gain with mask_errors: errors
    earn none, and 'ok' tells nothing. Without it, an agent that takes up suggestions gains by making mistakes.
    """

    shown: bool = True
    suggests: bool = True


PROBES: dict[str, Rule] = {
    'no_info': NoInfo(),
    'first_turn': FirstTurn(),
    'delayed': Delayed(),
    'tied': Tied(),
    'error_surprise': ErrorSurprise(),
}


@pytree_dataclass
class State:
    """One episode."""

    goal: jax.Array  # [2] int32
    said: jax.Array  # [2] int32, -1 before
    num_asked: jax.Array  # [] int32, questions so far
    turns: jax.Array  # [] int32, actions taken, malformed ones too
    done: jax.Array  # [] bool


class Probe(Worded):
    """A probe by name; an ``array.ArrayEnv``. What each one tests stands in the docstrings of ``PROBES``."""

    vocab = WORDS + tuple(f'v{v}' for v in range(NUM_VALUES)) + tuple(f'n{n}' for n in range(NUM_NOISE))
    stop_id = END
    prompt_len = NUM_SLOTS + 2
    action_len = NUM_SLOTS + 2
    max_turns = MAX_TURNS
    feedback_open, feedback_close, placeholder = (USER,), (AGENT,), (NOTHING,)
    outcome_range = 1.0  # nominal where outcomes tie: the gate divides by it

    def __init__(self, *, probe: str = 'no_info'):
        """Chooses a probe: a key of ``PROBES``.

        Raises:
            ValueError: an unknown probe.
        """
        if probe not in PROBES:
            raise ValueError(f'probe must be one of {list(PROBES)}, got {probe!r}')
        self.rule = PROBES[probe]
        self.feedback_len = NUM_SLOTS + self.rule.suggests
        self.example_len = self.prompt_len + (MAX_TURNS - 1) * (2 + 1 + self.feedback_len + 1) + self.action_len

    def reset(self, key: jax.Array, split: str) -> tuple[State, jax.Array, jax.Array]:
        """Starts an episode; see ``array.ArrayEnv.reset``."""
        goal = draw_goal(jax.random.uniform(key, (NUM_SLOTS + 1,)), num_values=NUM_VALUES, split=split)
        zero = jnp.int32(0)
        state = State(goal=goal, said=jnp.full_like(goal, -1), num_asked=zero, turns=zero, done=jnp.bool_(False))
        return state, self._prompt(goal, jnp.zeros(NUM_SLOTS, bool)), jnp.ones(self.prompt_len, bool)

    def step(self, key: jax.Array, state: State, action: jax.Array, action_mask: jax.Array) -> tuple:
        """Answers one action; see ``array.ArrayEnv.step``. Rewards sum to the outcome."""
        length = action_mask.sum()  # each form checks it, so padding is never read
        values = action[1:-1] - VALUE
        asks = (length == 2) & (action[0] == ASK) & (action[1] == END)
        says = (length == self.action_len) & (action[0] == SAY) & (action[-1] == END)
        says &= jnp.all((values >= 0) & (values < NUM_VALUES))

        played = State(
            goal=state.goal,
            said=jnp.where(says, values, state.said),
            num_asked=state.num_asked + asks,
            turns=state.turns + 1,
            done=says,
        )
        new = jax.tree.map(lambda old, fresh: jnp.where(state.done, old, fresh), state, played)
        reward = jnp.where(state.done, 0.0, self.score(new)[0] - self.score(state)[0])  # exactly 0 however XLA fuses

        error = ~asks & ~says & ~state.done
        draw = jax.random.uniform(key, (NUM_SLOTS,))
        feedback = self._reply(draw, state.goal, state.num_asked, error, jnp.zeros(NUM_SLOTS, bool))
        feedback = jnp.where(state.done | says, PAD, feedback)
        return new, feedback, feedback != PAD, reward, new.done, error

    def score(self, state: State) -> tuple[jax.Array, jax.Array]:
        """Returns outcome [] float32 and success [] bool: said right, and not too early."""
        success = state.done & jnp.all(state.said == state.goal) & (state.turns > self.rule.earliest)
        outcome = TIED_OUTCOME * (state.turns > 0) if self.rule.tied else success
        return outcome.astype(jnp.float32), success

    def example(self, key: jax.Array) -> Example:
        """Draws one warm-start transition, laid out as a rollout is.

        The history is a random number of questions, and of malformed actions where errors suggest. The target is a
        question, or says the values that the user named last and guesses the rest. One of the two is '?' wherever the
        user names values, and some answers show the placeholder instead: no example is a solved episode.
        """
        turns = MAX_TURNS - 1
        draw = jax.random.uniform(key, (3 + turns, 4))
        secret, num_past, choice, checksum = draw[0]
        goal = draw_goal(draw[1, : NUM_SLOTS + 1], num_values=NUM_VALUES, split='train')
        secret = pick(secret, 0, NUM_SLOTS)
        withheld = jnp.arange(NUM_SLOTS) == secret
        prompt = self._prompt(goal, withheld)

        past, turn_draw = jnp.arange(turns) < pick(num_past, 0, MAX_TURNS), draw[3:]
        wrong = self.rule.suggests & (turn_draw[:, 0] < 0.5)
        replaced = turn_draw[:, 1] < PLACEHOLDER_SHARE
        num_asked = jnp.cumsum(~wrong) - ~wrong
        replies = jax.vmap(self._reply, (0, None, 0, 0, None))(turn_draw[:, 2:], goal, num_asked, wrong, withheld)
        replies = jnp.where(replaced[:, None], jnp.full(self.feedback_len, PAD).at[0].set(NOTHING), replies)

        # The values the user named last, with their slot: the pair is the tail of a full-length reply.
        named = jnp.concatenate([prompt[None, 1:-1], replies[:, -NUM_SLOTS:]])
        names = jnp.any((named >= VALUE) & (named < NOISE), axis=1) & jnp.concatenate([jnp.array([True]), past])
        last = named[jnp.max(jnp.where(names, jnp.arange(MAX_TURNS), 0))]
        said = jnp.where(last >= VALUE, last - VALUE, pick(draw[2, :NUM_SLOTS], 0, NUM_VALUES))
        said = complete_goal(checksum, said, secret, num_values=NUM_VALUES, split='train')
        say = jnp.concatenate([jnp.array([SAY]), VALUE + said, jnp.array([END])])
        target = jnp.where(choice < 0.5, jnp.array([ASK, END, PAD, PAD]), say)

        columns = jnp.where(wrong, SAY, ASK), END, USER, *replies.T, AGENT  # 'say <end>' is malformed
        history = jnp.stack(jnp.broadcast_arrays(*columns), axis=1)
        tokens = jnp.concatenate([prompt, jnp.where(past[:, None], history, PAD).ravel(), target])
        target_mask = (jnp.arange(tokens.size) >= tokens.size - self.action_len) & (tokens != PAD)
        return left_align(tokens, tokens != PAD, target_mask)

    def _prompt(self, goal: jax.Array, withheld: jax.Array) -> jax.Array:
        """Returns the prompt [prompt_len] int32; values marked in ``withheld`` [2] are '?' in any case."""
        shown = jnp.where(withheld, UNKNOWN, VALUE + goal) if self.rule.shown else jnp.full_like(goal, UNKNOWN)
        return jnp.concatenate([jnp.array([USER]), shown, jnp.array([AGENT])]).astype(jnp.int32)

    def _reply(
        self, draw: jax.Array, goal: jax.Array, num_asked: jax.Array, error: jax.Array, withheld: jax.Array
    ) -> jax.Array:
        """Returns the feedback [feedback_len] int32, PAD behind it, to a question or a malformed action; draw: [2]."""

        def fill(*words: int | jax.Array) -> jax.Array:
            return jnp.full(self.feedback_len, PAD).at[: len(words)].set(jnp.stack(words))

        answer = fill(OK)
        if self.rule.noise:
            answer = fill(*pick(draw, NOISE, NOISE + NUM_NOISE))
        if self.rule.informs:
            answer = jnp.where(num_asked == 0, fill(*jnp.where(withheld, UNKNOWN, VALUE + goal)), answer)
        message = fill(ERROR)
        if self.rule.suggests:
            message = fill(ERROR, *jnp.where(withheld, UNKNOWN, pick(draw, VALUE, VALUE + NUM_VALUES)))
        return jnp.where(error, message, answer)
