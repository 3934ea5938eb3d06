"""Which system calls a sandboxed program may make, and with which arguments.

What is not named here fails with EPERM, or with ENOSYS where the number is newer than the tables. The list is what Python,
node, bash and the usual command-line tools need without network, devices, tracing or a second set of namespaces.
Arguments are compared by their low 32 bits: every tested one is an int or a flag word that the kernel cuts to 32 bits itself.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from typing import Final

from services.tools.sandbox.seccomp import bpf


class Reach(Enum):
    """Whose names a sandbox can say: paths, sockets, processes."""

    # Its own: it has a file tree and a network namespace to itself.
    OWN = "own"
    # The host's: it shares them, so what acts on a bare name is taken away.
    HOST = "host"


@dataclass(frozen=True, slots=True)
class OneOf:
    """The call fails unless an argument has one of these values."""

    argument: int
    values: tuple[int, ...]
    error: int = errno.EPERM

    def before(self, then: bpf.Block) -> bpf.Block:
        """Build the test, with what follows when it holds."""
        tests = tuple(
            bpf.Instruction(bpf.JUMP_IF_EQUAL, len(self.values) - place, 0, value)
            for place, value in enumerate(self.values)
        )
        return bpf.load_argument(self.argument, (*tests, *bpf.fail(self.error), *then))


@dataclass(frozen=True, slots=True)
class Without:
    """The call fails if an argument has any of these bits; `given` = (argument, bits) says when the test applies at all."""

    argument: int
    bits: int
    error: int = errno.EPERM
    given: tuple[int, int] | None = None

    def before(self, then: bpf.Block) -> bpf.Block:
        """Build the test, with what follows when it holds."""
        test = bpf.load_argument(
            self.argument, bpf.branch(bpf.JUMP_IF_ANY_BIT, self.bits, bpf.fail(self.error), then)
        )
        if self.given is None:
            return test
        argument, bits = self.given
        return bpf.load_argument(argument, bpf.branch(bpf.JUMP_IF_ANY_BIT, bits, test, then))


@dataclass(frozen=True, slots=True)
class Null:
    """The call fails unless an argument is a null pointer."""

    argument: int

    def before(self, then: bpf.Block) -> bpf.Block:
        """Build the test, with what follows when it holds."""
        denied = bpf.fail(errno.EPERM)
        high = bpf.load_high_word(self.argument, bpf.branch(bpf.JUMP_IF_EQUAL, 0, then, denied))
        return bpf.load_argument(self.argument, bpf.branch(bpf.JUMP_IF_EQUAL, 0, high, denied))


Requirement = OneOf | Without | Null

# A set-user-id or set-group-id file is never made: the service reads artifacts with other rights than the sandbox's.
_SET_ID: Final = 0o6000
# S_IFCHR, S_IFBLK and what shares their bits; regular files and FIFOs have none of them.
_DEVICE: Final = 0o060000
# O_CREAT and __O_TMPFILE; without them an opening call's mode is not looked at by the kernel and may be anything.
_CREATES: Final = 0o100 | 0o20000000

# CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET: no further namespace. CLONE_PARENT: every process stays
# its parent's child, which is how survivors are found. CLONE_PTRACE and CLONE_UNTRACED belong to tracing.
_NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE_PARENT: Final = 0x00008000
_CLONE_TRACE: Final = 0x00002000 | 0x00800000

_AF_UNIX: Final = 1
_SOCK_STREAM: Final = 1
_SOCK_SEQPACKET: Final = 5
_SOCK_FLAGS: Final = (0, 0o4000, 0o2000000, 0o2004000)  # SOCK_NONBLOCK, SOCK_CLOEXEC, both
_CONNECTED_TYPES: Final = tuple(
    kind | flags for kind in (_SOCK_STREAM, _SOCK_SEQPACKET) for flags in _SOCK_FLAGS
)
_SOL_SOCKET: Final = 1
# SO_REUSEADDR, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_LINGER, SO_REUSEPORT, SO_PASSCRED, the time-outs in both widths; no filters.
_SOCKET_OPTIONS: Final = (2, 7, 8, 9, 13, 15, 16, 20, 21, 66, 67)

# FIONBIO, FIOCLEX, FIONCLEX, FIONREAD, TIOCOUTQ: what pipes and sockets know. TCGETS, TCGETS2, TIOCGWINSZ and
# TIOCGPGRP: "is this a terminal?". Nothing writes to a terminal: TIOCSTI types for its owner.
_IOCTLS: Final = (0x5421, 0x5451, 0x5450, 0x541B, 0x5411, 0x5401, 0x802C542A, 0x5413, 0x540F)

# Descriptors, flags and locks: F_DUPFD to F_SETLKW, F_GETOWN, F_GETSIG, the locks of open file descriptions, F_DUPFD_CLOEXEC,
# F_GETPIPE_SZ, F_GET_SEALS. Not F_SETOWN, which aims signals at other processes; not F_SETPIPE_SZ, which takes from the pages
# that all pipes of one user share, the service's included; no leases and no F_NOTIFY on files of the host.
_FCNTLS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 36, 37, 38, 1030, 1032, 1034)

# PR_SET/GET_PDEATHSIG, PR_GET/SET_DUMPABLE, PR_SET/GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_SET/GET_TIMERSLACK,
# PR_SET/GET_NO_NEW_PRIVS, PR_SET/GET_THP_DISABLE, PR_SET_VMA: about the caller itself, and never giving it more.
_PRCTLS: Final = (1, 2, 3, 4, 15, 16, 21, 23, 29, 30, 38, 39, 41, 42, 0x53564D41)

# PER_LINUX, and the question which one it is.
_PERSONALITIES: Final = (0, 0xFFFFFFFF)

# SCHED_OTHER, SCHED_BATCH, SCHED_IDLE.
_POLICIES: Final = (0, 3, 5)

# Plain calls, allowed with any argument; the kernel's own checks stay.
_FILES: Final = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek
    stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat
    getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
    link linkat symlink symlinkat truncate ftruncate fallocate fsync fdatasync flock umask
    fchown
    getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr getxattrat listxattrat
    dup dup2 dup3 pipe pipe2 sendfile copy_file_range readahead fadvise64
"""
_WAITING: Final = """
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
    nanosleep clock_nanosleep pause futex futex_waitv futex_wake futex_wait futex_requeue
"""
_MEMORY: Final = """
    brk mmap munmap mremap mprotect msync mincore madvise mseal pkey_alloc pkey_free pkey_mprotect
    membarrier rseq map_shadow_stack
"""
_PROCESSES: Final = """
    fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
    getpid gettid getppid getpgrp getpgid setpgid getsid setsid set_tid_address set_robust_list
    getuid geteuid getgid getegid getresuid getresgid getgroups capget
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend rt_sigqueueinfo
    rt_tgsigqueueinfo sigaltstack restart_syscall arch_prctl
    getrlimit setrlimit getrusage getpriority sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_getattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval ioprio_get getcpu
"""
_CLOCKS: Final = """
    time gettimeofday clock_gettime clock_getres times alarm getitimer setitimer
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete
"""
_SYSTEM: Final = "uname sysinfo getrandom"
# On a unix socket, and there is no other.
_SOCKETS: Final = """
    getsockname getpeername getsockopt shutdown sendto recvfrom sendmsg recvmsg recvmmsg
"""
# What acts on a name, and is the sandbox's own business where the names are. Landlock lets a program change modes, owners and
# times of every file that its user owns, watch it, and reach every unix socket that has a path.
_NAMES: Final = """
    connect bind listen accept accept4 sendmmsg chown lchown fchownat utime utimes futimesat
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
"""

ALLOWED: Final = frozenset(
    f"{_FILES} {_WAITING} {_MEMORY} {_PROCESSES} {_CLOCKS} {_SYSTEM} {_SOCKETS}".split()
)
ALLOWED_ON_OWN_NAMES: Final = frozenset(_NAMES.split())

# Calls that fail as on a kernel without them, since programs then take their older way: one whose flags can be seen (clone
# for clone3, openat for openat2), or one that the filter leaves. Memory that no watchdog sees (memfd, System V and POSIX
# message queues and segments) is among them.
_MISSING: Final = """
    clone3 openat2 io_uring_setup io_uring_enter io_uring_register io_setup io_submit io_getevents io_destroy io_cancel
    memfd_create memfd_secret splice tee vmsplice mbind set_mempolicy get_mempolicy set_mempolicy_home_node
    shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
"""
# As on a file system without extended attributes; cp -a and tar go on without them.
_ATTRIBUTES: Final = """
    setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat
"""
ABSENT: Final = dict.fromkeys(_MISSING.split(), errno.ENOSYS) | dict.fromkeys(
    _ATTRIBUTES.split(), errno.EOPNOTSUPP
)

CHECKED: Final[dict[str, tuple[Requirement, ...]]] = {
    "open": (Without(2, _SET_ID, given=(1, _CREATES)),),
    "openat": (Without(3, _SET_ID, given=(2, _CREATES)),),
    "creat": (Without(1, _SET_ID),),
    "fchmod": (Without(1, _SET_ID),),
    "mknod": (Without(1, _SET_ID | _DEVICE),),
    "mknodat": (Without(2, _SET_ID | _DEVICE),),
    "clone": (Without(0, _NAMESPACES | _CLONE_PARENT | _CLONE_TRACE),),
    "ioctl": (OneOf(1, _IOCTLS, errno.ENOTTY),),
    "fcntl": (OneOf(1, _FCNTLS),),
    "prctl": (OneOf(0, _PRCTLS),),
    "personality": (OneOf(0, _PERSONALITIES),),
    # Of the caller itself only: without a process namespace of its own the sandbox would reach the service's processes.
    "prlimit64": (OneOf(0, (0,)),),
    "setpriority": (OneOf(0, (0,)), OneOf(1, (0,))),
    "ioprio_set": (OneOf(0, (1,)), OneOf(1, (0,))),
    "sched_setaffinity": (OneOf(0, (0,)),),
    "sched_setparam": (OneOf(0, (0,)),),
    "sched_setscheduler": (OneOf(0, (0,)), OneOf(1, _POLICIES)),
    "setsockopt": (OneOf(1, (_SOL_SOCKET,), errno.ENOPROTOOPT), OneOf(2, _SOCKET_OPTIONS, errno.ENOPROTOOPT)),
}

CHECKED_BY_REACH: Final[dict[Reach, dict[str, tuple[Requirement, ...]]]] = {
    Reach.OWN: {
        "chmod": (Without(1, _SET_ID),),
        "fchmodat": (Without(2, _SET_ID),),
        "fchmodat2": (Without(2, _SET_ID),),
        "utimensat": (),
        "socket": (OneOf(0, (_AF_UNIX,), errno.EAFNOSUPPORT),),
        "socketpair": (OneOf(0, (_AF_UNIX,), errno.EAFNOSUPPORT),),
    },
    Reach.HOST: {
        # Times of an open file; it was opened under Landlock's rules.
        "utimensat": (Null(1),),
        "socket": (OneOf(0, (), errno.EAFNOSUPPORT),),
        # A pair of datagram sockets could still send to a third one by its name; connected ones cannot.
        "socketpair": (
            OneOf(0, (_AF_UNIX,), errno.EAFNOSUPPORT),
            OneOf(1, _CONNECTED_TYPES, errno.EPROTONOSUPPORT),
        ),
    },
}
