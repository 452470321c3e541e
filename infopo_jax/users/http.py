"""JSON requests over HTTP, each with one deadline for all of it, from looking up the name to the last byte.

    client = Client(num_connections=16)
    status, headers, content = client.post('http://localhost:8000/v1/x', {'n': 1}, headers={}, seconds=60.0)
    client.close()

The time limits of HTTP libraries are those of single reads, which an answer that drips never meets. So requests are
coroutines in a thread of the client's own, where a deadline cuts them off wherever they are.
"""

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Mapping
from typing import Any

MAX_BODY = 8 * 2**20  # bytes of an answer


class NoAnswer(Exception):
    """A request failed: no connection, no whole answer in time, or one that is broken or too long."""


class Client:
    """Sends the requests of all threads.

    Args:
        num_connections: most that are open at once.

    Raises:
        ValueError: httpx is not installed.
    """

    def __init__(self, num_connections: int):
        self._httpx = _httpx()
        limits = self._httpx.Limits(max_connections=num_connections, max_keepalive_connections=num_connections)
        self._client = self._httpx.AsyncClient(timeout=None, limits=limits, follow_redirects=False)
        self._loop, self._lock = asyncio.new_event_loop(), threading.Lock()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name='http', daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._client, self._loop)  # nobody need call close
        self._end.atexit = False

    def post(
        self, url: str, body: Any, *, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Posts JSON; returns status, headers and content of the answer, whatever the status.

        Raises:
            NoAnswer: there is none within so many seconds, or the client was closed meanwhile.
        """
        with self._lock:
            if not self._end.alive:
                raise NoAnswer('the client is closed')
            request = asyncio.run_coroutine_threadsafe(self._post(url, body, headers, seconds), self._loop)
        try:
            return request.result()
        except concurrent.futures.CancelledError:
            raise NoAnswer('the client was closed') from None

    def close(self) -> None:
        """Cuts off what is under way and closes the connections."""
        with self._lock:
            self._end()
        self._thread.join()

    async def _post(self, url, body, headers, seconds):
        parts, size = [], 0
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream('POST', url, json=body, headers=headers) as response,
            ):
                async for part in response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_BODY:
                        raise NoAnswer(f'an answer of more than {MAX_BODY} bytes')
                return response.status_code, response.headers, b''.join(parts)
        except TimeoutError:
            raise NoAnswer(f'no whole answer within {seconds:.3g} s') from None
        except self._httpx.RequestError as error:
            raise NoAnswer(f'{type(error).__name__}: {error}') from None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _end(client: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Has a client's thread give up its requests, close its connections and end."""

    async def end():
        requests = asyncio.all_tasks() - {asyncio.current_task()}
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


def _httpx() -> Any:
    """Imports the HTTP library, which only this client needs."""
    try:
        import httpx
    except ImportError as error:
        raise ValueError("the openai user needs httpx: pip install 'infopo_jax[users]'") from error
    return httpx
