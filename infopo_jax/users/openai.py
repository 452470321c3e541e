"""A user behind any OpenAI-compatible endpoint: a provider, vLLM, SGLang, llama.cpp.

    user = OpenAIUser('qwen2.5-7b', base_url='http://localhost:8000/v1', api_key_env='', cache_dir='replies')
    user.reply([{'role': 'system', 'content': 'You want ...'}, {'role': 'user', 'content': 'Hi!'}], nonce='0/3/1')

Calls that fail in a way that may pass (429, 5xx, timeouts, dropped connections, broken or empty answers) are tried
again; a call without an answer raises UserFailed. The key is read from the environment and is in no file, message,
repr or cache. Protocol: https://platform.openai.com/docs/api-reference/chat/create
"""

import contextlib
import json
import math
import os
import random
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from infopo_jax.users import UserFailed, http, without_thoughts
from infopo_jax.users.limits import Pace, backoff, retry_after
from infopo_jax.users.replay import Replay

OFFICIAL = 'https://api.openai.com/v1'
PASSING = {408, 409, 425, 429}  # client errors that may pass; so may all of 5xx
QUOTED = 300  # characters of an answer that a message repeats
_COUNTS = (
    'calls', 'cached', 'requests', 'retries', 'retried_calls', 'failed_calls', 'prompt_tokens', 'completion_tokens',
    'cost', 'request_seconds', 'waited_seconds',
)  # fmt: skip


class _Passing(Exception):
    """A failure that may pass, after ``wait`` seconds if the endpoint says how many."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class OpenAIUser:
    """Implements ``User`` over HTTP; one instance serves all threads.

    With a cache, the same call in the same rollout (``nonce``) gets the same answer for ever; another rollout's is
    drawn anew. Requests carry a seed derived from call and nonce: an endpoint that honours it repeats without a cache.

    Args:
        model: its name at the endpoint.
        base_url: the endpoint up to and with its version.
        api_key_env: the variable that holds the key; '' sends none.
        temperature: of sampling.
        max_tokens: of an answer.
        timeout: seconds that one request may take, from the start to the last byte, however slowly it drips.
        retries: further requests of a call whose first one failed.
        patience: seconds that a call may take in all, retries and waiting included; None is no limit. Less than what a
            rollout allows its environment, so that it is the user who fails.
        concurrency: requests under way at once.
        requests_per_minute: 0 is no limit.
        cache_dir: a folder for replays; None keeps none.
        prompt_price, completion_price: of a million tokens, in the currency in which ``cost`` is to be counted.
        send_seed: False for endpoints that refuse the field.

    Raises:
        ValueError: a value out of range, a URL with a secret in it, a missing or malformed key, or httpx is not
            installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OFFICIAL,
        api_key_env: str = 'OPENAI_API_KEY',
        temperature: float = 1.0,
        max_tokens: int = 512,
        timeout: float = 60.0,
        retries: int = 5,
        patience: float | None = None,
        concurrency: int = 16,
        requests_per_minute: float = 0.0,
        cache_dir: str | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        send_seed: bool = True,
    ):
        self.patience = math.inf if patience is None else patience
        _check(model, base_url, timeout, retries, self.patience, concurrency, requests_per_minute)
        self.model, self.base_url, self.api_key_env = model, base_url.rstrip('/'), api_key_env
        self.temperature, self.max_tokens, self.timeout, self.retries = temperature, max_tokens, timeout, retries
        self._prices, self._send_seed = (prompt_price, completion_price), send_seed
        self._key = _key(api_key_env)
        self._client = http.Client(concurrency)
        self._replay, self._pace = Replay(cache_dir), Pace(requests_per_minute)
        self._room = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0.0)
        self._is_told = False  # that the cache cannot be written

    def __repr__(self) -> str:
        return f'OpenAIUser({self.model!r}, base_url={self.base_url!r})'

    def reply(self, messages: Sequence[dict[str, Any]], *, nonce: str = '') -> str:
        """Answers a talk; see ``users.User``.

        Raises:
            UserFailed: the endpoint refuses the call, every try failed, or patience is at its end; the message has the
                last failure.
        """
        call = {
            'url': self.base_url,
            'model': self.model,
            'temperature': self.temperature,
            'max_tokens': self.max_tokens,
            'messages': [{'role': m['role'], 'content': m['content']} for m in messages],
            'nonce': nonce,
        }
        key = Replay.key(call)
        self._count(calls=1)
        kept = self._replay.get(key)
        if kept is not None:
            self._count(cached=1)
            return kept
        try:
            text = self._persist(call, key)
        except UserFailed:
            self._count(failed_calls=1)
            raise
        self._keep(key, call, text)
        return text

    def counters(self) -> dict[str, float]:
        """Returns counts since the start.

        'calls' of ``reply``, of which 'cached', 'retried_calls' and 'failed_calls'; 'requests' sent, of which
        'retries'; 'prompt_tokens', 'completion_tokens' and 'cost' as the endpoint bills them; 'request_seconds' and
        'waited_seconds' (for the rate limit, for room and before retries), summed over threads.
        """
        with self._lock:
            return dict(self._counts)

    def endpoint(self) -> dict[str, Any]:
        """Returns where and how to ask, without the key: for packages that bring their own client."""
        return {
            'model': self.model,
            'base_url': self.base_url,
            'api_key_env': self.api_key_env,
            'temperature': self.temperature,
            'timeout': self.timeout,
            'retries': self.retries,
            'patience': None if math.isinf(self.patience) else self.patience,
        }

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _keep(self, key: str, call: dict[str, Any], text: str) -> None:
        """Writes an answer to the cache; a cache that cannot be written is told of once, and the paid answer stands."""
        try:
            self._replay.put(key, call, text)
        except OSError as error:
            with self._lock:
                was_told, self._is_told = self._is_told, True
            if not was_told:
                warnings.warn(f'config.user.cache_dir cannot be written, answers are not kept: {error}', stacklevel=3)

    def _persist(self, call: dict[str, Any], key: str) -> str:
        """Asks until there is an answer, no try is left, or patience is at its end."""
        rng, deadline = random.Random(key), time.monotonic() + self.patience
        problem: Exception | None = None
        for attempt in range(self.retries + 1):
            try:
                if attempt:
                    self._rest(backoff(attempt - 1, rng), deadline)
                    self._count(retries=1, retried_calls=attempt == 1)
                return self._request(call, rng.getrandbits(31), deadline)
            except TimeoutError:
                raise self._failed(
                    f'no answer within {self.patience:g} s (config.user.patience, from config.rollout.call_seconds), '
                    f'the last problem: {problem or "no room, or no start by the rate limit"}'
                ) from None
            except _Passing as failure:
                problem = failure
                if failure.wait is not None:  # it is told to all: whoever asks meanwhile is refused, too
                    self._pace.close_for(failure.wait)
        raise self._failed(f'no answer after {self.retries + 1} tries, the last one: {problem}') from None

    def _rest(self, seconds: float, deadline: float) -> None:
        """Sleeps before a retry; raises TimeoutError where that reaches the deadline."""
        seconds = min(seconds, max(0.0, deadline - time.monotonic()))
        time.sleep(seconds)
        self._count(waited_seconds=seconds)
        if time.monotonic() >= deadline:
            raise TimeoutError

    def _request(self, call: dict[str, Any], seed: int, deadline: float) -> str:
        """Asks once.

        Raises:
            _Passing: it failed and may be tried again.
            UserFailed: it failed for good.
            TimeoutError: the deadline came before it could be sent.
        """
        body = {name: call[name] for name in ('model', 'messages', 'temperature', 'max_tokens')}
        if self._send_seed:
            body['seed'] = seed
        with self._place(deadline):
            start = time.monotonic()
            if start >= deadline:
                raise TimeoutError
            try:
                status, headers, content = self._client.post(
                    f'{self.base_url}/chat/completions',
                    body,
                    headers={'Authorization': f'Bearer {self._key}'} if self._key else {},
                    seconds=min(self.timeout, deadline - start),
                )
            except http.NoAnswer as error:
                raise _Passing(self._redact(str(error))) from None
            finally:
                self._count(requests=1, request_seconds=time.monotonic() - start)
        if status in PASSING or status >= 500:
            raise _Passing(f'status {status}: {self._quote(content)}', retry_after(headers.get('Retry-After')))
        if status != 200:
            raise self._failed(f'status {status}: {self._quote(content)}')
        return self._read(content)

    @contextlib.contextmanager
    def _place(self, deadline: float) -> Iterator[None]:
        """Waits for a start, then for room among the requests under way, and keeps it.

        Raises:
            TimeoutError: the deadline came first.
        """
        start = time.monotonic()
        try:
            self._pace.wait(deadline)
            left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            if not self._room.acquire(timeout=left):
                raise TimeoutError
        finally:
            self._count(waited_seconds=time.monotonic() - start)
        try:
            self._pace.wait_open(deadline)  # the endpoint may have closed since
            yield
        finally:
            self._room.release()

    def _read(self, content: bytes) -> str:
        """Returns the text of an answer, without thoughts: they would tell the agent what it is to find out."""
        try:
            answer = json.loads(content)
            text = answer['choices'][0]['message']['content']
            usage = answer.get('usage') or {}
            tokens = [int(usage.get(name) or 0) for name in ('prompt_tokens', 'completion_tokens')]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _Passing(f'a broken answer ({type(error).__name__}): {self._quote(content)}') from None
        cost = sum(n * price for n, price in zip(tokens, self._prices, strict=True)) / 1e6
        self._count(prompt_tokens=tokens[0], completion_tokens=tokens[1], cost=cost)  # an empty one is billed, too
        text = without_thoughts(text) if isinstance(text, str) else ''
        if not text:
            raise _Passing('an empty answer')
        return text.encode('utf-8', 'replace').decode()  # JSON can spell half a surrogate pair, no file can hold it

    def _failed(self, message: str) -> UserFailed:
        return UserFailed(f'{self.model} at {self.base_url}: {message}')

    def _quote(self, content: bytes) -> str:
        """Returns the beginning of an answer for a message; the key goes first, lest half of it be left."""
        return self._redact(content.decode(errors='replace'))[:QUOTED]

    def _redact(self, text: str) -> str:
        """Returns a text without the key, which some endpoints repeat."""
        return text.replace(self._key, '***') if self._key else text

    def _count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount


def _check(model, base_url, timeout, retries, patience, concurrency, requests_per_minute) -> None:
    """Raises ValueError for arguments that cannot be meant."""
    url = urllib.parse.urlsplit(base_url)
    if not model:
        raise ValueError("model must name the endpoint's model, got ''; set config.user.model")
    if url.scheme not in ('http', 'https') or not url.hostname:
        raise ValueError('base_url must look like https://host/v1')
    if url.username or url.password or url.query or url.fragment:
        raise ValueError('base_url holds credentials or a query, which would end up in files: use api_key_env')
    if min(timeout, patience) <= 0 or retries < 0 or concurrency < 1 or requests_per_minute < 0:
        raise ValueError(
            'timeout and patience must be above 0, retries at least 0, concurrency at least 1, requests_per_minute at '
            f'least 0; got {timeout!r}, {patience!r}, {retries!r}, {concurrency!r}, {requests_per_minute!r}'
        )


def _key(variable: str) -> str:
    """Reads the key."""
    if not variable:
        return ''
    key = os.environ.get(variable, '').strip()
    if not key:
        raise ValueError(
            f'no key in the environment variable {variable}: export it, name another one by config.user.api_key_env, '
            "or set that to '' for an endpoint that wants none"
        )
    if not (key.isascii() and key.isprintable() and ' ' not in key):  # the error of an HTTP header would quote it
        raise ValueError(
            f'the key in the environment variable {variable} has a blank, a line break or a character beyond ASCII in '
            'it, which no header can carry: export the bare key'
        )
    return key
