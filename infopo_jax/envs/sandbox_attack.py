"""What ``sandbox.py`` tries from within its walls before it trusts them; runs there as any other answer does."""

import ctypes
import os
import socket
import sys
import threading
from collections.abc import Callable

_QUEUES = {'x86_64': (240, 241), 'aarch64': (180, 181)}  # numbers of mq_open and mq_unlink


def escapes(outside: str) -> list[str]:
    """Tries to get out, and returns what succeeded.

    Args:
        outside: a file that is outside.
    """
    found = []

    def attempt(name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (Exception, SystemExit):
            return
        found.append(name)

    def write(folder: str) -> None:
        with open(folder + '/escape', 'w', encoding='utf-8'):
            pass

    def mount() -> None:
        if ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, b'') != 0:
            raise OSError

    def see_packages() -> None:
        for folder, *inside in os.walk('/'):
            if os.path.basename(folder) in ('site-packages', 'dist-packages') and any(inside):
                return
        raise OSError

    def open_queue() -> None:
        call, (opens, unlinks) = ctypes.CDLL(None).syscall, _QUEUES[os.uname().machine]
        if call(opens, b'escape', os.O_CREAT | os.O_RDWR, 0o600, None) < 0:
            raise OSError
        call(unlinks, b'escape')

    attempt('start a process', lambda: os.fork() or os._exit(0))
    attempt('start a thread', lambda: threading.Thread(target=int).start())
    attempt('open a socket', lambda: socket.socket())
    attempt('open a socket to the host of a virtual machine', lambda: socket.socket(40, socket.SOCK_STREAM))
    attempt('become root', lambda: os.setuid(0))
    attempt('mount', mount)
    attempt('see installed packages', see_packages)
    attempt('leave a message queue behind', open_queue)
    attempt('take 10 GB', lambda: bytearray(10 << 30))
    for folder in ('/', '/tmp', '/dev/shm', *sys.path):
        attempt(f'write into {folder}', lambda folder=folder: write(folder))
    for path in ('/proc/self/environ', '/etc/passwd', '/sys/kernel', outside):
        attempt(f'see {path}', lambda path=path: os.stat(path))
    if os.environ:
        found.append('see an environment')
    if 0 in (os.getuid(), os.geteuid()):
        found.append('be root')
    return found
