"""A user whose words are the Flax language model's, on the devices that train it: the policy, or a checkpoint.

    user = PolicyUser(weights='current', max_tokens=64)
    user.bind(chat, graphdef, key=jax.random.key(0))
    user.publish(state.weights)  # before a batch of rollouts
    user.reply([{'role': 'system', 'content': 'You want ...'}, {'role': 'user', 'content': 'Hi!'}], nonce='0/3/1')
    user.withdraw()  # after it

What he costs. Every answer prefills the whole talk again, instructions first: a talk of T turns feeds about T / 2 times
its length, beside the agent's own T turns that are fed once. With short turns and long instructions he takes most of a
rollout's time: in retail he is fed some 365 tokens for an answer where the agent is fed 20. Answers of a batch decode
in lockstep until the longest is done, in ``concurrency`` rows however few are asked for. For the time of a batch of
rollouts the weights stand in memory once more, in the compute dtype and the layout that decoding reads. On a mesh of
several devices all of that is on the first one, whole, and the others wait for it where agents wait for their user.
(Programs of two threads that both speak with all devices could each hold some and wait for the rest; what runs on one
device waits for nobody.)
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from infopo_jax.lm import decoding
from infopo_jax.lm.chat import Chat
from infopo_jax.lm.generate import Sampler
from infopo_jax.users import UserFailed, without_thoughts
from infopo_jax.users.batcher import Batcher, Closed

WEIGHTS = ('current', 'frozen')
_COUNTS = ('calls', 'retries', 'failed_calls', 'batches', 'prompt_tokens', 'completion_tokens', 'seconds')
_TAIL = 16  # tokens at the end of a prompt in which a template may have opened a thought


class PolicyUser:
    """Implements ``User``; one instance serves all threads, whose questions are decoded together.

    An answer depends on weights, messages, nonce and the key of ``bind`` alone, to the last bit: prompts of one padded
    length share a batch, every batch has the same rows, and who else is in it changes nothing.

    Args:
        weights: 'current', the policy as it is at each batch of rollouts, or 'frozen', as it was before training; None:
            'current', with a path 'frozen'.
        path: folder or hub id of a checkpoint that plays instead, with a tokenizer of its own.
        temperature: of sampling; 0 is greedy.
        max_tokens: of an answer, thoughts included; a longer one is cut.
        max_prompt_tokens: of instructions and talk; None: what the model's positions leave.
        concurrency: rows decoded at once; more than threads that ask (config.rollout.workers) stay empty.
        retries: times that an answer which is blank, or all thought, is drawn anew; none if greedy.
        patience: seconds for an answer in all, waiting and compiling included; None is no limit.

    Raises:
        ValueError: a value out of range, or 'current' weights for a checkpoint that does not train.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        path: str | None = None,
        temperature: float = 1.0,
        max_tokens: int = 128,
        max_prompt_tokens: int | None = None,
        concurrency: int = 16,
        retries: int = 3,
        patience: float | None = None,
    ):
        self.weights, self.path = weights or ('frozen' if path else 'current'), path
        _check(self.weights, path, max_tokens, max_prompt_tokens, concurrency, retries)
        self.draw = decoding.Draw(temperature)
        self.max_tokens, self.max_prompt_tokens = max_tokens, max_prompt_tokens
        self.concurrency, self.retries, self.patience = concurrency, retries, patience
        self._chat: Chat | None = None
        self._own: Sampler | None = None
        self._batcher: Batcher | None = None
        self._speaking = threading.Lock()  # tokenizers are not for several threads
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0.0)

    @property
    def needs_reference(self) -> bool:
        """Whether the policy as it was before training has to be kept for him."""
        return self.weights == 'frozen' and self.path is None

    def bind(
        self,
        chat: Chat,
        graphdef: Any,
        *,
        key: jax.Array,
        params: Any = None,
        device: Any = None,
        cache_dtype: str | None = None,
    ) -> None:
        """Gives him a language; environments, which a tokenizer may be trained on, are made with their user.

        Args:
            chat: renders what he reads; his alone, and so is its tokenizer.
            graphdef: static part of the model.
            key: of all that he says.
            params: nnx.State of a checkpoint of his own; None: ``publish`` brings weights.
            device: that he decodes on; None leaves weights where they are, which must be a single device.
            cache_dtype: of keys and values; None: the model's compute dtype.
        """
        self._chat, self._graphdef, self._key = chat, graphdef, key
        self._device, self._cache_dtype = device, cache_dtype
        self._own = None if params is None else self._sampler(params)

    def publish(self, current: Any, reference: Any = None) -> None:
        """Takes the weights for a batch of rollouts, and answers from now on.

        Args:
            current: nnx.State of the policy as it is.
            reference: nnx.State of the policy before training; needed by 'frozen' weights without a path.
        """
        assert self._chat is not None and self._batcher is None, 'bind, then publish and withdraw in turns'
        assert reference is not None or not self.needs_reference
        sampler = self._own or self._sampler(reference if self.needs_reference else current)
        room = sampler.config.max_position - self.max_tokens
        self._room = room if self.max_prompt_tokens is None else min(room, self.max_prompt_tokens)
        self._batcher = Batcher(lambda asked: self._decode(sampler, asked), size=self.concurrency)

    def withdraw(self) -> None:
        """Lets go of the weights, for the memory of the update; who still asks is turned away."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            batcher.close()

    def reply(self, messages: Sequence[dict[str, Any]], *, nonce: str = '') -> str:
        """Answers a talk; see ``users.User``.

        Raises:
            UserFailed: the talk is too long, every answer was blank, or no batch of rollouts is under way.
        """
        self._count(calls=1)
        try:
            return self._persist([{'role': m['role'], 'content': m['content']} for m in messages], nonce)
        except UserFailed:
            self._count(failed_calls=1)
            raise

    def counters(self) -> dict[str, float]:
        """Returns counts since the start.

        'calls' of ``reply``, of which 'failed_calls'; 'retries', answers drawn anew; 'batches' decoded, in 'seconds'
        all together, with 'prompt_tokens' fed and 'completion_tokens' drawn.
        """
        with self._lock:
            return dict(self._counts)

    def _persist(self, messages: list[dict[str, str]], nonce: str) -> str:
        """Draws until there is an answer, or no try or time is left."""
        end = math.inf if self.patience is None else time.monotonic() + self.patience
        prompt, opened = self._render(messages)
        words = _words(messages, nonce)
        tries = 1 + (self.retries if self.draw.temperature else 0)
        for attempt in range(tries):
            self._count(retries=attempt > 0)
            ids = self._ask(prompt, [*words, attempt], end)
            with self._speaking:
                text = without_thoughts(opened + self._chat.action_text(ids))
            if text:
                return text
        raise _failed(
            f'{tries} answers were blank or all thought, the last one of {len(ids)} tokens: raise '
            f'config.user.max_tokens = {self.max_tokens}, or let somebody play who can (config.user.path, user.name)'
        )

    def _render(self, messages: list[dict[str, str]]) -> tuple[list[int], str]:
        """Returns the prompt's ids, and the '<think>' with which a template may have opened the answer."""
        if self._chat is None or self._batcher is None:
            raise _failed('he has no weights: he answers only while a run plays rollouts')
        with self._speaking:
            try:
                prompt = self._chat.prompt(messages)
            except ValueError as error:
                raise _failed(f'{error}; take a model with another template by config.user.path') from error
            end = self._chat.decode(prompt[-_TAIL:])
        if len(prompt) > self._room:
            raise _failed(
                f'instructions and talk have {len(prompt)} tokens, more than {self._room}: raise '
                'config.user.max_prompt_tokens (the model has positions for that and config.user.max_tokens at most), '
                'or shorten the talk by config.env.turn_limit'
            )
        return prompt, '<think>' if end.rfind('<think>') > end.rfind('</think>') else ''

    def _ask(self, prompt: list[int], words: list[int], end: float) -> list[int]:
        """Returns the tokens of an answer, if it comes until ``end`` (by time.monotonic)."""
        timeout = None if self.patience is None else max(0.0, end - time.monotonic())
        batcher = self._batcher
        try:
            if batcher is None:
                raise Closed
            return batcher.ask(decoding.bucket(len(prompt), decoding.LEAST_COLUMNS), (prompt, words), timeout=timeout)
        except Closed:
            raise _failed('the rollouts were over before he could answer') from None
        except TimeoutError:
            raise _failed(
                f'no answer within {self.patience:g} s, compiling included: raise config.rollout.call_seconds, or '
                'config.user.concurrency'
            ) from None
        except Exception as error:  # of the device: memory, mostly
            raise _failed(f'decoding failed, lower config.user.concurrency? {type(error).__name__}: {error}') from error

    def _decode(self, sampler: Sampler, asked: list[tuple[list[int], list[int]]]) -> list[list[int]]:
        start = time.perf_counter()
        prompts, words = zip(*asked, strict=True)
        out = sampler.generate(
            prompts,
            key=self._key,
            folds=words,
            max_new_tokens=self.max_tokens,
            temperature=self.draw.temperature,
            stop_ids=self._chat.stop_ids,
            allow_empty=False,
        )
        self._count(
            batches=1,
            prompt_tokens=sum(map(len, prompts)),
            completion_tokens=int(out.lengths.sum()),
            seconds=time.perf_counter() - start,
        )
        return [out.ids(n) for n in range(len(prompts))]

    def _sampler(self, params: Any) -> Sampler:
        params = params if self._device is None else jax.device_put(params, self._device)
        model = nnx.merge(self._graphdef, params)
        return Sampler(model, cache_dtype=self._cache_dtype, least_prompts=self.concurrency)

    def _count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount


def _words(messages: list[dict[str, str]], nonce: str) -> list[int]:
    """Returns 64 bits that name a call, as two uint32."""
    digest = hashlib.sha256(json.dumps([messages, nonce], sort_keys=True).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], 'big') for i in (0, 4)]


def _failed(message: str) -> UserFailed:
    return UserFailed(f'the policy as user: {message}')


def _check(weights, path, max_tokens, max_prompt_tokens, concurrency, retries) -> None:
    """Raises ValueError for arguments that cannot be meant."""
    if weights not in WEIGHTS:
        raise ValueError(f'weights must be one of {", ".join(WEIGHTS)}, got {weights!r}')
    if path is not None and weights == 'current':
        raise ValueError(
            f"config.user.path = {path!r}: a checkpoint of the user's own does not train; leave it away, or set "
            "config.user.weights to 'frozen'"
        )
    if min(max_tokens, concurrency, 1 if max_prompt_tokens is None else max_prompt_tokens) < 1 or retries < 0:
        raise ValueError(
            'max_tokens, max_prompt_tokens and concurrency must be at least 1 and retries at least 0, got '
            f'{max_tokens}, {max_prompt_tokens}, {concurrency} and {retries}'
        )
