"""A slot-filling user inside XLA: ask for what is hidden, then book.

An episode with four slots, three of them hidden (the agent's tokens in brackets, a wrong first move shown)::

    <user> book s0 ? s1 v7 s2 ? s3 ? <agent> [ask s2 <end>] <user> s2 v5 <agent> [book ask <end>] <user> <error>
    <agent> [ask s0 <end>] <user> s0 v2 <agent> [ask s3 <end>] <user> s3 v7 <agent> [book v2 v7 v5 v7 <end>]

Goals are split by a checksum, the sum of values modulo ``num_values``: some checksums belong to 'test'. Any one value
can be chosen to meet a wanted checksum, so goals of either split are drawn uniformly and without rejection.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infopo_jax.envs.array import Example
from infopo_jax.types import pytree_dataclass

TEST_SHARE = 0.15  # of the checksums (at least one) belongs to split 'test'
PLACEHOLDER_SHARE = 0.2  # of the answers in warm-start examples shows the placeholder
WORDS = ('<pad>', '<user>', '<agent>', '<end>', 'ask', 'book', '?', '<error>', '<no_information>')
PAD, USER, AGENT, END, ASK, BOOK, UNKNOWN, ERROR, NOTHING = range(len(WORDS))


class Worded:
    """An environment whose tokens are words: text and ids, for people to read and tests to write."""

    vocab: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of words separated by spaces.

        Raises:
            ValueError: a word is not in the vocabulary.
        """
        unknown = [word for word in text.split() if word not in self.vocab]
        if unknown:
            raise ValueError(f'{unknown[0]!r} is not a word of this environment; its words: {" ".join(self.vocab)}')
        return [self.vocab.index(word) for word in text.split()]

    def decode(self, ids: Sequence[int] | jax.Array) -> str:
        """Returns the words of ``ids`` [any length]; padding is left out."""
        return ' '.join(self.vocab[int(i)] for i in ids if int(i) != PAD)


def pick(draw: jax.Array, low: int, high: int) -> jax.Array:
    """Maps uniform draws in [0, 1) to uniform int32 in [low, high).

    The environments draw one block of uniforms a call and pick from it: each call of jax.random would add to the time
    that the program takes to compile, and there would be a dozen.
    """
    return low + jnp.floor(draw * (high - low)).astype(jnp.int32)


def complete_goal(draw: jax.Array, values: jax.Array, slot: jax.Array, *, num_values: int, split: str) -> jax.Array:
    """Redraws one value such that the vector is a goal of the split.

    Args:
        draw: [] float32, uniform in [0, 1).
        values: [K] int32 in [0, num_values).
        slot: [] int32, which value to redraw; uniform ``values`` give uniform goals.
        num_values: size of the value set.
        split: 'train' or 'test'.

    Returns:
        [K] int32.

    Raises:
        ValueError: an unknown split.
    """
    num_test = max(1, round(TEST_SHARE * num_values))
    bounds = {'test': (0, num_test), 'train': (num_test, num_values)}
    if split not in bounds:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    checksum = pick(draw, *bounds[split])
    others = values.sum() - values[slot]
    return values.at[slot].set((checksum - others) % num_values)


def draw_goal(draw: jax.Array, *, num_values: int, split: str) -> jax.Array:
    """Returns a uniformly drawn goal [K] int32 of a split, from ``draw`` [K + 1] float32, uniform in [0, 1)."""
    return complete_goal(draw[-1], pick(draw[:-1], 0, num_values), jnp.int32(0), num_values=num_values, split=split)


def left_align(tokens: jax.Array, token_mask: jax.Array, target_mask: jax.Array) -> Example:
    """Moves the tokens [M] where ``token_mask`` is True to the front, in order; PAD follows."""
    order = jnp.argsort(~token_mask, stable=True)
    token_mask = token_mask[order]
    return Example(
        tokens=jnp.where(token_mask, tokens[order], PAD).astype(jnp.int32),
        token_mask=token_mask,
        target_mask=target_mask[order] & token_mask,
    )


@pytree_dataclass
class State:
    """One episode; K slots."""

    goal: jax.Array  # [K] int32
    booked: jax.Array  # [K] int32, -1 before booking
    turns: jax.Array  # [] int32, actions taken, malformed ones too
    done: jax.Array  # [] bool


class Intent(Worded):
    """The slot-filling user; an ``array.ArrayEnv``.

    Best behaviour: ask each hidden slot once, then book; success 1 in num_hidden + 1 turns. Asking what is known is
    answered again. Booking ends the episode. A malformed action is answered with an error, and the episode goes on.
    """

    def __init__(
        self,
        *,
        num_slots: int = 4,
        num_values: int = 12,
        num_hidden: int = 3,
        turn_limit: int = 6,
        reward: str = 'sparse',
        turn_cost: float = 0.0,
        ask_fraction: float = 0.5,
    ):
        """Sets the task.

        Args:
            num_slots: K, at least 2.
            num_values: size of the value set that all slots share.
            num_hidden: slots whose value the prompt does not show, drawn anew for each episode.
            turn_limit: actions per episode.
            reward: 'sparse', 1 if every slot is right at booking; 'share', the share of right slots.
            turn_cost: taken off the outcome for each action, the booking too.
            ask_fraction: share of asks among the targets of warm-start examples.

        Raises:
            ValueError: a knob outside its range.
        """
        rules = {
            'num_slots': (num_slots, num_slots >= 2, 'at least 2'),
            'num_values': (num_values, num_values >= 2, 'at least 2'),
            'num_hidden': (num_hidden, 1 <= num_hidden <= num_slots, f'from 1 to num_slots ({num_slots})'),
            'turn_limit': (turn_limit, turn_limit > num_hidden, f'more than num_hidden ({num_hidden}) to book too'),
            'reward': (reward, reward in ('sparse', 'share'), "'sparse' or 'share'"),
            'turn_cost': (turn_cost, turn_cost >= 0, 'at least 0'),
            'ask_fraction': (ask_fraction, 0 <= ask_fraction <= 1, 'from 0 to 1'),
        }
        for knob, (value, fits, wanted) in rules.items():
            if not fits:
                raise ValueError(f'{knob} must be {wanted}, got {value!r}')
        self.num_slots, self.num_values, self.num_hidden = num_slots, num_values, num_hidden
        self.reward, self.turn_cost, self.ask_fraction = reward, turn_cost, ask_fraction
        self.slot_id, self.value_id = len(WORDS), len(WORDS) + num_slots  # ids of s0 and v0
        self.vocab = WORDS + tuple(f's{k}' for k in range(num_slots)) + tuple(f'v{v}' for v in range(num_values))
        self.stop_id = END
        self.prompt_len = 2 * num_slots + 3
        self.action_len = num_slots + 2
        self.feedback_len = 2
        self.max_turns = turn_limit
        self.feedback_open, self.feedback_close, self.placeholder = (USER,), (AGENT,), (NOTHING,)
        self.outcome_range = 1.0 + turn_cost * (turn_limit - 1)  # booked right at once, or nothing right at the limit
        self.example_len = self.prompt_len + (turn_limit - 1) * (3 + 1 + self.feedback_len + 1) + self.action_len

    def reset(self, key: jax.Array, split: str) -> tuple[State, jax.Array, jax.Array]:
        """Starts an episode; see ``array.ArrayEnv.reset``."""
        draw = jax.random.uniform(key, (2, self.num_slots + 1))
        goal = draw_goal(draw[0], num_values=self.num_values, split=split)
        hidden = jnp.argsort(draw[1, :-1]) < self.num_hidden
        state = State(goal=goal, booked=jnp.full_like(goal, -1), turns=jnp.int32(0), done=jnp.bool_(False))
        return state, self._prompt(goal, hidden), jnp.ones(self.prompt_len, bool)

    def step(self, key: jax.Array, state: State, action: jax.Array, action_mask: jax.Array) -> tuple:
        """Answers one action; see ``array.ArrayEnv.step``. Rewards sum to the outcome."""
        del key  # this user never hesitates: the same question gets the same answer
        length = action_mask.sum()  # each form checks it, so padding is never read
        slot = action[1] - self.slot_id
        values = action[1:-1] - self.value_id
        asks = (length == 3) & (action[0] == ASK) & (action[2] == END) & (slot >= 0) & (slot < self.num_slots)
        books = (length == self.action_len) & (action[0] == BOOK) & (action[-1] == END)
        books &= jnp.all((values >= 0) & (values < self.num_values))

        played = State(
            goal=state.goal, booked=jnp.where(books, values, state.booked), turns=state.turns + 1, done=books
        )
        new = jax.tree.map(lambda old, fresh: jnp.where(state.done, old, fresh), state, played)
        reward = jnp.where(state.done, 0.0, self.score(new)[0] - self.score(state)[0])  # exactly 0 however XLA fuses

        error = ~asks & ~books & ~state.done
        value = state.goal[jnp.clip(slot, 0, self.num_slots - 1)]
        answer = jnp.where(asks, jnp.stack([action[1], self.value_id + value]), jnp.array([ERROR, PAD]))
        feedback_mask = jnp.stack([asks | error, asks]) & ~state.done
        return new, jnp.where(feedback_mask, answer, PAD).astype(jnp.int32), feedback_mask, reward, new.done, error

    def score(self, state: State) -> tuple[jax.Array, jax.Array]:
        """Returns outcome [] float32 and success [] bool: every slot is booked right."""
        right = state.booked == state.goal
        success = state.done & right.all()
        gained = success.astype(jnp.float32) if self.reward == 'sparse' else right.mean(dtype=jnp.float32)
        return gained - self.turn_cost * state.turns.astype(jnp.float32), success

    def example(self, key: jax.Array) -> Example:
        """Draws one warm-start transition, laid out as a rollout is.

        The history is a random number of asks about random slots. The target is an ask about a random slot, or a
        booking that copies what is known and guesses the rest. One hidden slot is never answered (the placeholder
        stands in its answers) and some other answers are withheld too: the placeholder becomes familiar, and no example
        is a solved episode.
        """
        turns = self.max_turns - 1
        draw = jax.random.uniform(key, (6, max(self.num_slots + 1, turns, 4)))
        num_past, choice, slot, checksum = draw[0, :4]
        goal = draw_goal(draw[1, : self.num_slots + 1], num_values=self.num_values, split='train')
        rank = jnp.argsort(draw[2, : self.num_slots])
        hidden = rank < max(2, self.num_hidden)  # with one hidden slot, never answered, reading answers is not learned
        secret = jnp.argmin(rank)

        past = jnp.arange(turns) < pick(num_past, 0, self.max_turns)
        asked = pick(draw[3, :turns], 0, self.num_slots)
        told = (asked != secret) & (draw[4, :turns] >= PLACEHOLDER_SHARE)
        known = ~hidden | jnp.any((past & told)[:, None] & (asked[:, None] == jnp.arange(self.num_slots)), axis=0)

        booked = jnp.where(known, goal, pick(draw[5, : self.num_slots], 0, self.num_values))
        booked = complete_goal(checksum, booked, secret, num_values=self.num_values, split='train')
        target = jnp.concatenate([jnp.array([BOOK]), self.value_id + booked, jnp.array([END])])
        ask = jnp.full_like(target, PAD).at[:3].set(jnp.stack([ASK, self.slot_id + pick(slot, 0, self.num_slots), END]))
        target = jnp.where(choice < self.ask_fraction, ask, target)

        history, history_mask = self._history(goal, asked, told)
        prompt, none = self._prompt(goal, hidden), jnp.zeros(self.example_len - self.action_len, bool)
        tokens = jnp.concatenate([prompt, history.ravel(), target])
        token_mask = jnp.concatenate([prompt != PAD, (history_mask & past[:, None]).ravel(), target != PAD])
        example = left_align(tokens, token_mask, jnp.concatenate([none, target != PAD]))
        guessed = jnp.concatenate([jnp.zeros(1, bool), ~known, jnp.zeros(1, bool)]) & (target[0] == BOOK)
        # Its tokens stand behind all others, so the target starts where they end.
        start = example.token_mask.sum() - (target != PAD).sum()
        guess_mask = jax.lax.dynamic_update_slice(jnp.zeros(self.example_len, bool), guessed, (start,))
        return dataclasses.replace(example, guess_mask=guess_mask & example.target_mask)

    def _prompt(self, goal: jax.Array, hidden: jax.Array) -> jax.Array:
        """Returns the prompt [prompt_len] int32: slot names, each with its value or '?'."""
        slots = self.slot_id + jnp.arange(self.num_slots)
        pairs = jnp.stack([slots, jnp.where(hidden, UNKNOWN, self.value_id + goal)], axis=1).ravel()
        return jnp.concatenate([jnp.array([USER, BOOK]), pairs, jnp.array([AGENT])]).astype(jnp.int32)

    def _history(self, goal: jax.Array, asked: jax.Array, told: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Renders asks about ``asked`` [T - 1] with answer or placeholder; returns tokens and mask [T - 1, W]."""
        slots, values = self.slot_id + asked, self.value_id + goal[asked]
        columns = ASK, slots, END, USER, jnp.where(told, slots, NOTHING), jnp.where(told, values, PAD), AGENT
        history = jnp.stack(jnp.broadcast_arrays(*columns), axis=1)
        return history, history != PAD
