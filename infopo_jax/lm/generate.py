"""Continuing prompts: one prefill per prompt, then tokens in chunks that stay on the device.

    sampler = Sampler(model)
    out = sampler.generate(prompts, key=jax.random.key(0), max_new_tokens=256, group_size=8, stop_ids=[eos])
    out.tokens[n, : out.lengths[n]], out.logps[n], out.reasons[n]

The rows of a group read the keys and values of their prompt where its one prefill left them; what they say goes into a
cache of their own. Both have as many columns as the longest row needs, in sizes that grow by a third to a half: what is
compiled is reused, and no step attends over many columns that nobody has filled. Host and device meet once per chunk, a
chunk late while nothing on the host (stop strings, a stream) waits for tokens.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from infopo_jax.lm import decoding


class StopReason(enum.IntEnum):
    """Why a row ended; stored as int8."""

    LENGTH = 0  # its limit, or max_new_tokens
    STOP_ID = 1
    STOP_STRING = 2


@dataclasses.dataclass(frozen=True)
class Generation:
    """N = P * G continuations; row n continues prompt n // G."""

    tokens: np.ndarray  # [N, T] int32, what was sampled, a stop token included; 0 behind the end of a row
    logps: np.ndarray  # [N, T] float32, log-probability under what was sampled from; 0 behind the end of a row
    lengths: np.ndarray  # [N] int32, tokens per row
    reasons: np.ndarray  # [N] int8, a StopReason

    def ids(self, row: int) -> list[int]:
        """Returns the tokens of a row."""
        return self.tokens[row, : self.lengths[row]].tolist()


class Sampler:
    """Generates with one model; what it compiles is kept for as long as the process lives.

    Args:
        model: a ``lm.transformer.Transformer``; its weights are copied once, see ``decoding.for_decoding``.
        cache_dtype: of keys and values, one of ``cache.DTYPES``; None keeps the compute dtype.
        chunk: tokens per row and dispatch: how often the host may look, and stop strings are searched for.
        decode: ids -> text, for stop strings.
        least_prompts: every batch is filled up to so many prompts. Batches of fewer then have one shape, in which a
            row's numbers are, to the last bit, the same whoever else is there; prompts of one length, that is.
    """

    def __init__(
        self,
        model: Any,
        *,
        cache_dtype: str | None = None,
        chunk: int = 32,
        decode: Callable[[list[int]], str] | None = None,
        least_prompts: int = 1,
    ):
        if chunk < 1 or least_prompts < 1:
            raise ValueError(f'chunk and least_prompts must be at least 1, got {chunk} and {least_prompts}')
        self.config, self.chunk, self.decode = model.config, chunk, decode
        self.least_prompts = least_prompts
        self.cache_dtype = cache_dtype or model.config.dtype
        self.publish(model)

    def publish(self, model: Any) -> None:
        """Takes new weights."""
        self._model = decoding.split_for_decoding(model)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        key: jax.Array,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        group_size: int = 1,
        limits: Sequence[int] | None = None,
        stop_ids: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
        on_tokens: Callable[[int, list[int]], None] | None = None,
        folds: Sequence[Sequence[int]] | None = None,
        allow_empty: bool = True,
    ) -> Generation:
        """Continues every prompt ``group_size`` times.

        A row's tokens depend on its prompt, its place (prompt and member of the group) and the key alone, not on what
        else is in the batch; with ``folds`` not on the prompt's place either.

        Args:
            prompts: P lists of ids, none empty.
            key: of this batch.
            max_new_tokens: most tokens per row.
            temperature: 0 is greedy.
            top_k: see ``sampling.sample``, as the next two; not for training.
            top_p: likewise.
            min_p: likewise.
            group_size: G.
            limits: N numbers, most tokens of each row; None is max_new_tokens for all.
            stop_ids: tokens that end a row, as its last token.
            stop_strings: texts that end a row with the token that completes them.
            on_tokens: called with a row and its new tokens after every chunk.
            folds: [P, K] uint32 that name the prompts, in place of their numbers: what the key is folded with.
            allow_empty: False: the first token is none of stop_ids, as if rows that stop at once were drawn anew.

        Returns:
            Generation of N = P * G rows, T = max_new_tokens.

        Raises:
            ValueError: naming the argument that makes no sense.
        """
        draw = decoding.Draw(temperature, top_k, top_p, min_p)
        limits = _checked(prompts, max_new_tokens, group_size, limits, self.config.vocab_size)
        if folds is not None and np.shape(folds)[:-1] != (len(prompts),):
            raise ValueError(f'folds must be [{len(prompts)}, K] integers, got shape {list(np.shape(folds))}')
        if stop_strings and self.decode is None:
            raise ValueError('stop_strings need a tokenizer: Sampler(model, decode=tokenizer.decode)')
        batch = decoding.Batch(
            self._model,
            prompts,
            limits,
            draw=draw,
            stop_ids=tuple(sorted(set(map(int, stop_ids)))),
            chunk=self.chunk,
            cache_dtype=self.cache_dtype,
            folds=folds,
            least_prompts=self.least_prompts,
            allow_empty=allow_empty,
        )
        rows = _Rows(len(limits), max_new_tokens, self.decode, stop_strings, on_tokens)
        batch.begin(key)
        waiting, ended = [batch.drawn], ~rows.going
        while batch.step < int(limits.max()):
            if rows.watches:  # the host decides who goes on
                ended = rows.take(waiting.pop())
                if not rows.going.any():
                    break
            elif len(waiting) > 1 and not np.asarray(waiting[-2].going).any():  # the device is one chunk ahead
                break
            batch.advance(ended)
            waiting.append(batch.drawn)
        for drawn in waiting:
            rows.take(drawn)
        return rows.finish(np.asarray(stop_ids, np.int32))


def generate(model: Any, prompts: Sequence[Sequence[int]], *, cache_dtype: str | None = None, **options: Any):
    """Continues prompts with a model, once; see ``Sampler.generate`` for the arguments and what it returns.

    ``decode`` among the options is the ``Sampler``'s.
    """
    own = {name: options.pop(name) for name in ('decode', 'chunk') if name in options}
    return Sampler(model, cache_dtype=cache_dtype, **own).generate(prompts, **options)


def _checked(prompts, max_new_tokens, group_size, limits, vocab_size) -> np.ndarray:
    """Returns the limits [N]; raises ValueError for arguments that make no sense."""
    if not len(prompts) or not all(len(prompt) for prompt in prompts):
        raise ValueError('prompts must be lists of at least one token, and at least one of them')
    for p, prompt in enumerate(prompts):
        low, high = int(np.min(prompt)), int(np.max(prompt))
        if low < 0 or high >= vocab_size:
            raise ValueError(f'prompt {p} holds token {low if low < 0 else high}; the vocabulary has {vocab_size}')
    if max_new_tokens < 1 or group_size < 1:
        raise ValueError(f'max_new_tokens and group_size must be at least 1, got {max_new_tokens} and {group_size}')
    rows = len(prompts) * group_size
    limits = np.full((rows,), max_new_tokens) if limits is None else np.asarray(limits)
    if limits.shape != (rows,) or limits.min() < 1:
        raise ValueError(f'limits must be {rows} numbers of at least 1, one per row; got {limits.tolist()}')
    return np.minimum(limits, max_new_tokens).astype(np.int32)


class _Rows:
    """The host's side: tokens so far, and which rows go on."""

    def __init__(self, num_rows, size, decode, stop_strings, on_tokens):
        self.tokens, self.logps = np.zeros((num_rows, size), np.int32), np.zeros((num_rows, size), np.float32)
        self.lengths, self.reasons = np.zeros((num_rows,), np.int32), np.zeros((num_rows,), np.int8)
        self.going = np.ones((num_rows,), bool)
        self._decode, self._strings, self._on_tokens = decode, tuple(stop_strings), on_tokens

    @property
    def watches(self) -> bool:
        """Whether tokens are wanted as soon as they are drawn."""
        return bool(self._strings) or self._on_tokens is not None

    def take(self, drawn) -> np.ndarray:
        """Takes a dispatch's tokens; returns which rows have ended."""
        drawn = jax.device_get(drawn)
        for n in np.flatnonzero(self.going):
            count, start = int(drawn.count[n]), int(self.lengths[n])
            self.tokens[n, start : start + count] = drawn.tokens[n, :count]
            self.logps[n, start : start + count] = drawn.logps[n, :count]
            self.lengths[n] += count
            self.going[n] = drawn.going[n]
            if self._strings and count:
                self._cut(n, start)
            if self._on_tokens is not None and self.lengths[n] > start:
                self._on_tokens(int(n), self.tokens[n, start : self.lengths[n]].tolist())
        return ~self.going

    def finish(self, stop_ids) -> Generation:
        """Returns everything, with why each row ended."""
        last = self.tokens[np.arange(len(self.lengths)), self.lengths - 1]
        stopped = np.isin(last, stop_ids) & (self.reasons == StopReason.LENGTH)
        self.reasons[stopped] = StopReason.STOP_ID
        return Generation(self.tokens, self.logps, self.lengths, self.reasons)

    def _cut(self, n, start):
        """Ends a row with the first of its new tokens that completes a stop string."""
        ids = self.tokens[n, : self.lengths[n]].tolist()
        if not self._found(ids):
            return
        end = next(i for i in range(start + 1, len(ids) + 1) if self._found(ids[:i]))
        self.tokens[n, end:], self.logps[n, end:] = 0, 0.0
        self.lengths[n], self.going[n], self.reasons[n] = end, False, StopReason.STOP_STRING

    def _found(self, ids):
        text = self._decode(ids)
        return any(string in text for string in self._strings)
