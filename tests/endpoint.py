"""A real HTTP server on 127.0.0.1 that speaks the chat completions protocol, well or badly, as a test wants."""

import http.server
import json
import threading
import time


class Endpoint:
    """Serves POST .../chat/completions until the ``with`` block ends.

    Args:
        plan: called as plan(number, request) for the number-th request (from 0, in order of arrival); returns a text to
            answer with, or (status, headers, body), or 'DROP' to hang up, or ('SLOW', seconds, text), or ('DRIP',
            seconds, text) to send a byte of the body every now and then, or ('DRIP_ALL', seconds, text) of the headers
            too.
    """

    def __init__(self, plan=lambda number, request: 'hello'):
        self.plan, self.requests, self.headers, self.times = plan, [], [], []
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()

    @property
    def url(self):
        return f'http://127.0.0.1:{self._server.server_port}/v1'

    def __enter__(self):
        handler = type('Handler', (_Handler,), {'endpoint': self})
        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class EndpointUser:
    """Stands for an OpenAIUser where only his endpoint is asked for; nobody listens there."""

    def endpoint(self):
        return {'model': 'tiny', 'base_url': 'http://127.0.0.1:9/v1', 'api_key_env': ''}


def completion(text, **message):
    """Returns the body of a good answer."""
    return json.dumps(
        {
            'id': 'x',
            'object': 'chat.completion',
            'created': 0,
            'model': 'm',
            'choices': [
                {
                    'index': 0,
                    'finish_reason': 'stop',
                    'message': {'role': 'assistant', 'content': text, **message},
                }
            ],
            'usage': {'prompt_tokens': 10, 'completion_tokens': 4, 'total_tokens': 14},
        }
    )


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    endpoint: Endpoint

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        end = self.endpoint
        with end._lock:
            number = len(end.requests)
            end.requests.append(body)
            end.headers.append(dict(self.headers))
            end.times.append(time.monotonic())
            end.busy += 1
            end.most_busy = max(end.most_busy, end.busy)
        try:
            self.answer(end.plan(number, body))
        finally:
            with end._lock:
                end.busy -= 1

    def answer(self, what):
        if what == 'DROP':
            self.close_connection = True
            return
        if what[0] == 'SLOW':
            time.sleep(what[1])
            what = what[2]
        drip, drip_all = what[1] if what[0] in ('DRIP', 'DRIP_ALL') else 0.0, what[0] == 'DRIP_ALL'
        what = what[2] if drip else what
        status, headers, body = what if isinstance(what, tuple) else (200, {}, completion(what))
        data = body.encode()
        try:
            self.send_response(status)
            for name, value in {'Content-Type': 'application/json', **headers}.items():
                self.send_header(name, value)
            self.send_header('Content-Length', str(len(data)))
            if drip_all:
                self._drip(b''.join(self._headers_buffer), drip)
                self._headers_buffer = []
            self.end_headers()
            if drip:
                self._drip(data, drip)
            else:
                self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the other side has lost patience

    def _drip(self, data, seconds):
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(seconds)

    def log_message(self, *_):
        pass
