"""The contract of environments that live inside XLA."""

from typing import Any, Protocol

import jax

from infopo_jax.types import pytree_dataclass

State = Any


@pytree_dataclass
class Example:
    """One supervised transition for the warm start: some history, then one action.

    The action follows no strategy; see ``warmstart``.
    """

    tokens: jax.Array  # [M] int32, left-aligned
    token_mask: jax.Array  # [M] bool, True at real tokens
    target_mask: jax.Array  # [M] bool, True at the tokens of the one supervised action
    guess_mask: jax.Array | None = None  # [M] bool, True at target tokens that are guesses; they get no loss


class ArrayEnv(Protocol):
    """An environment of pure functions on arrays; ``jax.vmap`` batches it.

    Every length is static. A group of rollouts shares the key of ``reset``; its members differ in the keys of ``step``.
    Goals of split 'test' never occur in split 'train'.
    """

    vocab: tuple[str, ...]  # token id -> text
    stop_id: int  # the token that ends an action
    prompt_len: int  # longest prompt, tokens
    action_len: int  # most tokens per action, stop token included
    feedback_len: int  # longest feedback, tokens
    max_turns: int
    feedback_open: tuple[int, ...]  # markup before feedback
    feedback_close: tuple[int, ...]  # markup after feedback, before the next action
    placeholder: tuple[int, ...]  # what the counterfactual shows in place of feedback
    outcome_range: float  # largest minus smallest outcome
    example_len: int  # M, length of warm-start examples

    def reset(self, key: jax.Array, split: str) -> tuple[State, jax.Array, jax.Array]:
        """Starts an episode of split 'train' or 'test'.

        Returns:
            state, prompt [prompt_len] int32 (with the markup that precedes the first action), prompt_mask [prompt_len]
            bool, left-aligned.
        """

    def step(self, key: jax.Array, state: State, action: jax.Array, action_mask: jax.Array) -> tuple:
        """Answers one action.

        Args:
            key: randomness of the answer.
            state: from ``reset`` or the last ``step``.
            action: [action_len] int32, left-aligned; its last real token is stop_id unless the turn ran into its cap.
            action_mask: [action_len] bool, True at sampled tokens, stop token included.

        Returns:
            state, feedback [feedback_len] int32, feedback_mask [feedback_len] bool (left-aligned, no markup), reward []
            float32, done [] bool, is_error [] bool (the feedback is an error message).
        """

    def score(self, state: State) -> tuple[jax.Array, jax.Array]:
        """Returns outcome [] float32 (partial credit kept) and success [] bool of the episode so far."""

    def example(self, key: jax.Array) -> Example:
        """Draws one warm-start transition from training goals only."""
