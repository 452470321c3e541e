"""The device side of hosted rollouts: rows of one KV cache in which rollouts speak, and rows in which others wait.

A token's column is its position, so what an earlier tenant of a row left behind stands where the new one has not come
yet: it is overwritten before it could be seen, or masked, and nothing has to be emptied.

On accelerators a dispatch reads as many columns as the longest row has filled, in powers of two. On CPU it reads all,
and no size depends on who is there: there shapes decide how sums are rounded, and the same seed is to give the same
rollouts to the bit whoever answers first.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from infopo_jax import sharding
from infopo_jax.lm import decoding
from infopo_jax.rollout import slot_programs as programs

FEED_SIZES = (16, 64, 256)  # tokens of answers per row and dispatch
PROMPT_SIZES = (64, 512)  # tokens of one prompt per dispatch
LEAST_COLUMNS = 256  # that are read where only filled ones are
FEED_TOKENS = (128, 512)  # tokens of answers per dispatch, on CPU and on accelerators, which then compute enough
MOST_ROWS = 8  # fed per dispatch, unless rows are divided over devices: they are copied
SWAPS = 4  # rows that change places per dispatch
SCORE_BYTES = 2**30  # most that a device holds of one layer's attention scores while answers are fed


class Slots:
    """Programs over the rows, and the arrays that stay on the device between ``begin`` and ``end``.

    Beside the caches a batch holds a copy of the weights, in the compute dtype and as decoding reads them.

    Args:
        graphdef: static part of the model.
        num_slots: rows that are decoded together.
        num_aside: rows that wait for their environment while others take their slots.
        max_tokens: most tokens of a row.
        chunk: most decode steps per dispatch.
        stop_ids: tokens that end an action.
        feed_sizes: tokens of answers that a dispatch may feed per row, ascending.
        mesh: devices that the slots are divided over.
        cache_dtype: of keys and values; None: the model's compute dtype.
        fit_columns: whether only filled columns are read; None: on accelerators.
    """

    def __init__(
        self,
        graphdef: Any,
        *,
        num_slots: int,
        num_aside: int,
        max_tokens: int,
        chunk: int,
        stop_ids: tuple[int, ...],
        feed_sizes: tuple[int, ...] = FEED_SIZES,
        mesh: jax.sharding.Mesh | None = None,
        cache_dtype: str | None = None,
        fit_columns: bool | None = None,
    ):
        on_cpu = jax.default_backend() == 'cpu'
        self.num_slots, self.num_aside = num_slots, num_aside
        self._fit = not on_cpu if fit_columns is None else fit_columns
        self._divided = mesh is not None and any(mesh.shape[axis] > 1 for axis in sharding.ROWS)
        self._feed_tokens = FEED_TOKENS[0 if on_cpu else 1]
        # A padded part reaches past the last token by up to its size: an eighth of the row, at most, but for the least.
        self._feed_sizes = feed_sizes[:1] + tuple(size for size in feed_sizes[1:] if 8 * size <= max_tokens)
        self._prompt_sizes = PROMPT_SIZES[: 2 if 8 * PROMPT_SIZES[1] <= max_tokens and not on_cpu else 1]
        self._columns = max_tokens + max(chunk, self._feed_sizes[-1], self._prompt_sizes[-1])
        self._graphdef, self._mesh, self._cache_dtype = graphdef, mesh, cache_dtype
        self._chunk, self._stop_ids = chunk, stop_ids
        self._model: Any = None  # graphdef of the model for decoding, known with the first weights
        self.end()

    def begin(self, params: Any, key: jax.Array) -> None:
        """Makes the rows ready for a batch: new weights, nothing fed."""
        if self._model is None:
            abstract = jax.eval_shape(lambda p: decoding.for_decoding(nnx.merge(self._graphdef, p)), params)
            self._model = nnx.split(abstract)[0]
            self._feed_sizes = self._affordable(abstract.config.num_heads)
        self._key, self._params = key, programs.publish(self._graphdef, self._mesh, params)
        empty = functools.partial(programs.empty, self._model, self._mesh, self._cache_dtype, self._columns)
        self._cache, self._logits = empty(self.num_slots, self._params)
        self._aside = empty(self.num_aside, self._params)[0] if self.num_aside else None
        self._row, self._row_logits = empty(1, self._params)
        self._prompt: list[int] = []  # what the prompt's row holds
        self._places = np.zeros((self.num_slots, 2), np.int32)  # (group, member) of each slot

    def _affordable(self, num_heads):
        """Returns the feed sizes, but for the least those whose attention scores a device has room for."""
        devices = 1 if self._mesh is None else self._mesh.size
        row = 4 * num_heads * self._columns // devices  # bytes of a token's scores
        return tuple(
            size for size in self._feed_sizes
            if size == self._feed_sizes[0] or self._rows_of(size) * size * row <= SCORE_BYTES
        )  # fmt: skip

    def end(self) -> None:
        """Lets go of all that a batch held on the device."""
        self._params = self._key = self._cache = self._logits = self._aside = self._row = self._row_logits = None

    def seat(self, slots: list[int], places: list[tuple[int, int]], prompt: list[int]) -> int:
        """Gives slots to new rollouts of one prompt, fed and ready to speak; returns the tokens that had to be fed.

        The prompt is fed once, behind what it shares with the prompt before: policy and tools stand there already.
        """
        assert prompt
        shared = len(prompt)
        if prompt != self._prompt:
            pairs = enumerate(zip(self._prompt, prompt, strict=False))
            shared = next((i for i, (a, b) in pairs if a != b), min(len(self._prompt), len(prompt)))
            shared = min(shared, len(prompt) - 1)  # the last token gives the logits
            self._feed_prompt(prompt, shared)
        index = np.zeros((self.num_slots,), np.int32)
        index[: len(slots)] = slots
        self._places[slots] = places
        row, count = (self._row, self._row_logits), np.int32(len(slots))
        self._cache, self._logits = programs.seat(self._mesh, (self._cache, self._logits), row, index, count)
        return len(prompt) - shared

    def _feed_prompt(self, prompt, start):
        """Feeds a prompt from a token on into the prompt's row."""
        self._prompt = list(prompt)
        while start < len(prompt):
            size = fitting(len(prompt) - start, self._prompt_sizes)
            part = prompt[start : start + size]
            fed = np.array([start], np.int32)
            self._row, self._row_logits = self._dispatch(self._row, self._row_logits, size, {0: part}, fed)
            start += len(part)

    def swap(self, pairs: list[tuple[int, int]], places: list[tuple[int, int]]) -> None:
        """Exchanges slots with rows aside, and notes who sits there now.

        Args:
            pairs: (slot, row aside), at most one per slot.
            places: (group, member) of who comes into each slot.
        """
        self._places[[slot for slot, _ in pairs]] = places
        for start in range(0, len(pairs), SWAPS):
            part = pairs[start : start + SWAPS]
            index = np.resize(np.array(part, np.int32), (SWAPS, 2))
            self._cache, self._aside = programs.swap(self._mesh, self._cache, self._aside, index, np.int32(len(part)))

    def feed(self, answers: Mapping[int, list[int]], fed: np.ndarray) -> None:
        """Feeds tokens to some slots, in parts; a dispatch takes parts of one size.

        Args:
            answers: slot -> tokens, at least one.
            fed: [slots] tokens that each row holds.
        """
        waiting, fed = dict(answers), fed.copy()
        while waiting:
            sizes = {slot: fitting(len(ids), self._feed_sizes) for slot, ids in waiting.items()}
            size = max(sizes.values())
            rows = [slot for slot in waiting if sizes[slot] == size][: self._rows_of(size)]
            parts = {slot: waiting[slot][:size] for slot in rows}
            self._cache, self._logits = self._dispatch(self._cache, self._logits, size, parts, fed)
            for slot, part in parts.items():
                fed[slot] += len(part)
                waiting[slot] = waiting[slot][size:]
            waiting = {slot: ids for slot, ids in waiting.items() if ids}

    def _rows_of(self, size):
        """Returns the rows that are fed at once in parts of a size."""
        if self._divided:  # rows brought together would be rows sent between devices
            return self.num_slots
        return min(self.num_slots, MOST_ROWS, max(1, self._feed_tokens // size))

    def _dispatch(self, cache, logits, size, parts, fed):
        """Feeds {row: ids} of one size to rows [N] that hold ``fed`` tokens each."""
        few = self._rows_of(size) < len(fed)  # else all rows are computed, each at its place
        rows = np.resize(np.array(list(parts), np.int32), self._rows_of(size)) if few else np.arange(len(fed))
        tokens, count = np.zeros((len(rows), size), np.int32), np.zeros((len(rows),), np.int32)
        for i, (row, ids) in enumerate(parts.items()):
            at = i if few else row
            tokens[at, : len(ids)], count[at] = ids, len(ids)
        start = fed[rows].astype(np.int32)
        columns = self._filled(start + size)  # also of rows that are fed nothing: XLA would clamp where they start
        setting = programs.Setting(self._model, self._mesh, columns)
        return programs.extend(setting, self._params, cache, logits, tokens, count, start, rows if few else None)

    def decode(self, fed: np.ndarray, drawn: np.ndarray, budget: np.ndarray, **draw: float):
        """Samples up to ``chunk`` tokens in rows with a budget, at most that, until each stops.

        Args:
            fed: [slots] tokens that each row holds.
            drawn: [slots] tokens that each rollout has sampled so far: a token's key is folded from its number.
            budget: [slots] tokens that each may say; 0 where nobody speaks.
            **draw: temperature, top_k, top_p and min_p of ``sampling.draw``.

        Returns:
            tokens [slots, chunk], log-probabilities [slots, chunk] and how many [slots], on the host.
        """
        setting = programs.Setting(self._model, self._mesh, self._filled(fed[budget > 0]))
        static = setting, self._chunk, self._stop_ids, decoding.Draw(**draw)
        self._cache, self._logits, out = programs.decode(
            *static, self._params, self._cache, self._logits, fed, drawn, budget, self._key, self._places
        )
        return jax.device_get(out)

    def wait(self) -> None:
        """Waits until what was dispatched is done, so that its time is told apart."""
        jax.block_until_ready(self._logits)

    def _filled(self, lengths: np.ndarray) -> int:
        """Returns the columns that a dispatch reads for rows of these lengths."""
        columns = LEAST_COLUMNS if self._fit else self._columns
        while columns < lengths.max(initial=0):
            columns *= 2
        return columns if 2 * columns <= self._columns else self._columns  # a part is a copy while it is read


def fitting(pending: int, sizes: tuple[int, ...]) -> int:
    """Returns the size of the part in which so many tokens are fed next.

    The smallest that takes them all if they fill more than half of it, else the largest that they fill. It depends on
    nothing else, so a row is fed in the same parts whoever sits beside it.
    """
    above = next((size for size in sizes if size >= pending), sizes[-1])
    below = max((size for size in sizes if size <= pending), default=above)
    return above if 2 * pending > above else below
