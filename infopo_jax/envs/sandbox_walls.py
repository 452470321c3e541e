"""The walls of the sandbox: what a process gives up before it runs code that nobody trusts. Linux only.

The kinds, of which ``sandbox.py`` takes the first that holds: 'namespaces' (root), 'user_namespace' (anybody), 'uid'
(root in a container that may make no namespaces). All end alike: another user id, no capability, a read-only root with
the standard library alone, no network, no second process, limits on memory and CPU time.
"""

import ctypes
import itertools
import os
import platform
import resource
import shutil
import signal
import struct
import sys

KINDS = ('namespaces', 'user_namespace', 'uid')
_PLACE = '/proc'  # exists everywhere and holds no library: the worker's root is built over it, in its own view
_MOUNT = {'rdonly': 1, 'nosuid': 2, 'nodev': 4, 'noexec': 8, 'remount': 32, 'bind': 4096, 'rec': 16384}
_PRIVATE = 1 << 18
_PACKAGES = ('site-packages', 'dist-packages')  # inside the standard library's folder, and no part of it
_NS, _USER_NS = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000, 0x10000000  # mount, uts, ipc, pid, net
_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVS = 1, 22, 38  # prctl
_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}  # column of _REFUSED, audit architecture

# System calls refused to the worker, by number: other processes, sockets of any family (AF_VSOCK is in no network
# namespace), more namespaces, memory and queues that outlive it, and parts of the kernel that no answer needs.
_REFUSED = {
    'socket': (41, 198),
    'socketpair': (53, 199),
    'clone': (56, 220),
    'fork': (57, None),
    'vfork': (58, None),
    'clone3': (435, 435),
    'execve': (59, 221),
    'execveat': (322, 281),
    'unshare': (272, 97),
    'setns': (308, 268),
    'mount': (165, 40),
    'umount2': (166, 39),
    'pivot_root': (155, 41),
    'chroot': (161, 51),
    'ptrace': (101, 117),
    'process_vm_readv': (310, 270),
    'process_vm_writev': (311, 271),
    'keyctl': (250, 219),
    'add_key': (248, 217),
    'request_key': (249, 218),
    'bpf': (321, 280),
    'perf_event_open': (298, 241),
    'userfaultfd': (323, 282),
    'io_uring_setup': (425, 425),
    'shmget': (29, 194),
    'msgget': (68, 186),
    'semget': (64, 190),
    'mq_open': (240, 180),
    'mq_unlink': (241, 181),
}

_STDLIB = os.path.dirname(os.path.realpath(os.__file__))
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments) -> None:
    """Calls a function of the C library; raises OSError, with its name, where it fails."""
    ctypes.set_errno(0)
    if getattr(_libc, name)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f'{name}: {os.strerror(code)}')


def _prctl(option: int, value: int, *more) -> None:
    rest = (*more, *[ctypes.c_ulong(0)] * (3 - len(more)))
    _call('prctl', ctypes.c_int(option), ctypes.c_ulong(value), *rest)


def _mount(source: str, target: str, kind: str | None, *names: str, held: int = 0, data: str = '') -> None:
    """Calls mount with the flags named, and those of ``held``."""
    flags = sum(_MOUNT[name] for name in names) | held
    _call('mount', source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())


def enter(kind: str) -> None:
    """Leaves the namespaces of the caller; the next child is the first process of a new one.

    Args:
        kind: one of ``KINDS``.

    Raises:
        OSError: the system grants no such namespaces.
        ValueError: an unknown kind.
    """
    if kind not in KINDS:  # else the mounts to come would be the caller's own
        raise ValueError(f'no walls of kind {kind!r}, only {KINDS}')
    if kind == 'namespaces':
        _call('unshare', _NS)
    elif kind == 'user_namespace':
        uid, gid = os.geteuid(), os.getegid()
        _call('unshare', _NS | _USER_NS)
        for name, text in (('setgroups', 'deny'), ('uid_map', f'1000 {uid} 1'), ('gid_map', f'1000 {gid} 1')):
            fd = os.open(f'/proc/self/{name}', os.O_WRONLY)
            os.write(fd, text.encode())
            os.close(fd)


def make_root(root: str) -> None:
    """Makes the root of kind 'uid', which may mount nothing: a new folder of links to the standard library's files.

    Files that cannot be linked from there are copied. Installed packages are left out, and what is large and of no use
    to an answer: the library's own tests, and what extensions are built with.

    Raises:
        OSError: something is there already, or there is no place for it; what was made of it is gone again.
    """
    os.mkdir(root, 0o700)  # nobody else's, whatever the name
    try:
        left_out = shutil.ignore_patterns(*_PACKAGES, 'test', 'config-*')
        shutil.copytree(_STDLIB, root, symlinks=True, ignore=left_out, copy_function=_link, dirs_exist_ok=True)
        os.chmod(root, 0o755)
    except OSError:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copy2(source, target)


def confine(kind: str, keep: list[int], *, root: str | None, number: int, cpu_s: int, memory_mb: int) -> None:
    """Gives up all that a worker does not need.

    Args:
        kind: one of ``KINDS``, the one that was entered.
        keep: descriptors that stay open, all above 2; standard input is empty afterwards, and output as it was.
        root: what ``make_root`` made, for kind 'uid'; None if it failed.
        number: of the worker, below 2**22; makes its user id one that no other process has.
        cpu_s: seconds of CPU time. memory_mb: MiB of address space.

    Raises:
        OSError: a wall could not be built.
    """
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    edges = [2, *sorted(keep), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)
    if kind == 'uid':
        _chroot(root)
    else:
        _build_root()
    if os.geteuid() == 0:
        _become_nobody(number)
    _prctl(_PDEATHSIG, signal.SIGKILL)
    _call('capset', struct.pack('=Ii', 0x20080522, 0), bytes(24))  # version 3, this process: three empty sets
    memory = memory_mb << 20
    for name, limit in (('CPU', cpu_s), ('AS', memory), ('FSIZE', 0), ('CORE', 0), ('NOFILE', 32), ('NPROC', 1)):
        resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (limit, limit))
    _prctl(_NO_NEW_PRIVS, 1)
    _filter()


def _become_nobody(number: int) -> None:
    """Takes the user id that belongs to a number; raises OSError if there is none to take."""
    os.setgroups([])
    failed = None
    for uid in ((1 << 30) + number, 10_000 + number % 50_000):  # the latter where a container maps few
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return
        except OSError as error:
            failed = error
    raise OSError(failed.errno, f'no other user id to take: {failed}')


def _libraries() -> list[str]:
    """Returns the folders of the standard library, none inside another."""
    folders = sorted({os.path.realpath(path) for path in sys.path if os.path.isdir(path)})
    return [a for a in folders if not any(a.startswith(b + os.sep) for b in folders)]


def _build_root() -> None:
    """Makes a root that holds the standard library, read-only, where it was, and moves into it."""
    _mount('none', '/', None, 'rec', held=_PRIVATE)
    _mount('tmpfs', _PLACE, 'tmpfs', 'nosuid', 'nodev', data='size=64k,mode=755')
    for folder in _libraries():
        inside = _PLACE + folder
        os.makedirs(inside)
        _mount(folder, inside, None, 'bind')
        held = os.statvfs(inside).f_flag & _MOUNT['noexec']  # may be locked: to take it off is refused
        _mount(folder, inside, None, 'bind', 'remount', 'rdonly', 'nosuid', 'nodev', held=held)
        for name in _PACKAGES:
            if os.path.isdir(f'{inside}/{name}'):
                _mount('tmpfs', f'{inside}/{name}', 'tmpfs', 'rdonly', 'nosuid', 'nodev', data='size=4k')
    os.chdir(_PLACE)
    _mount('tmpfs', _PLACE, None, 'bind', 'remount', 'rdonly', 'nosuid', 'nodev')
    os.chroot('.')  # for good: no descriptor leads out, nothing may mount, and who is in here gets no user namespace
    os.chdir('/')


def _chroot(root: str | None) -> None:
    """Makes a folder of ``make_root`` the root; owners and modes of its files keep it as it is."""
    if root is None:
        raise OSError('there is no place for links to, or copies of, the standard library: set TMPDIR')
    os.chroot(root)
    os.chdir('/')

    def moved(paths):
        return [path.removeprefix(_STDLIB) or '/' for path in paths if path.startswith(_STDLIB)]

    sys.path[:] = moved(sys.path)
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if hasattr(module, '__path__'):
            module.__path__ = moved(module.__path__)


def _filter() -> None:
    """Has the kernel answer the calls of ``_REFUSED`` with EPERM; raises OSError where it cannot.

    The program (seccomp, classic BPF) loads the architecture and kills if it is another, loads the call's number, kills
    the second numbering of x86_64, then compares: https://docs.kernel.org/userspace-api/seccomp_filter.html
    """
    if platform.machine() not in _MACHINES:
        raise OSError(f'no list of system calls for {platform.machine()}; known: {", ".join(_MACHINES)}')
    column, architecture = _MACHINES[platform.machine()]
    load, equal, greater, give = 0x20, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | 1
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(greater, 0, 1, 0x40000000), (give, 0, 0, kill)]
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (give, 0, 0, refuse)]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *step) for step in program))
    header = struct.pack('@HP', len(program), ctypes.addressof(code))
    _prctl(_SECCOMP, 2, ctypes.c_char_p(header))
