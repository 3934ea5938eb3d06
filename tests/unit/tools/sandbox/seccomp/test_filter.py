import errno
import itertools
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import FailedPreconditionError
from services.tools.sandbox.seccomp import rules
from services.tools.sandbox.seccomp.filter import compile_filter
from services.tools.sandbox.seccomp.numbers import AARCH64, X86_64, Architecture
from services.tools.sandbox.seccomp.rules import Reach
from tests.fakes.bpf_machine import ALLOW, KILL, BpfMachine, Call

MACHINES = {
    (architecture.name, reach): BpfMachine(compile_filter(architecture.name, reach=reach))
    for architecture in (X86_64, AARCH64)
    for reach in Reach
}
BOTH = pytest.mark.parametrize("machine", [X86_64, AARCH64], ids=lambda machine: machine.name)
ANY_REACH = pytest.mark.parametrize("reach", list(Reach), ids=lambda reach: reach.value)

# What no sandboxed program may ever reach, whatever it passes.
NEVER = """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    keyctl add_key request_key kexec_load kexec_file_load init_module finit_module delete_module
    mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
    open_tree_attr swapon swapoff reboot acct quotactl quotactl_fd sethostname setdomainname syslog
    clone3 openat2 name_to_handle_at open_by_handle_at fanotify_init seccomp
    settimeofday clock_settime clock_adjtime adjtimex iopl ioperm modify_ldt
    setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset
    memfd_create memfd_secret shmget msgget semget mq_open vmsplice splice tee
    move_pages migrate_pages lookup_dcookie vhangup mlock mlock2 mlockall sync syncfs
"""


def verdict(machine: Architecture, name: str, *arguments: int, reach: Reach = Reach.OWN) -> str | int:
    call = Call(machine.audit_id, machine.numbers[name], arguments)
    return MACHINES[machine.name, reach].run(call)


@BOTH
@ANY_REACH
def test_dangerous_calls_fail_whatever_their_arguments(machine: Architecture, reach: Reach) -> None:
    reached = [
        name
        for name in NEVER.split()
        if name in machine.numbers
        for arguments in ((), (1,) * 6, (0xFFFF_FFFF,) * 6)
        if verdict(machine, name, *arguments, reach=reach) == ALLOW
    ]
    assert reached == []


@BOTH
@ANY_REACH
@settings(deadline=None)
@given(number=st.integers(0, 0xFFFF_FFFF))
def test_a_number_that_no_table_knows_is_absent(machine: Architecture, reach: Reach, number: int) -> None:
    if number in machine.numbers.values() or number & machine.foreign_bit:
        return
    assert MACHINES[machine.name, reach].run(Call(machine.audit_id, number)) == errno.ENOSYS


@BOTH
def test_the_first_number_after_the_newest_is_absent(machine: Architecture) -> None:
    call = Call(machine.audit_id, machine.newest + 1)
    assert MACHINES[machine.name, Reach.OWN].run(call) == errno.ENOSYS


@BOTH
@settings(deadline=None)
@given(
    arch=st.integers(0, 0xFFFF_FFFF),
    number=st.integers(0, 500),
    arguments=st.lists(st.integers(0, 2**64 - 1), max_size=6),
)
def test_a_call_by_another_architecture_kills(
    machine: Architecture, arch: int, number: int, arguments: list[int]
) -> None:
    if arch == machine.audit_id:
        return
    call = Call(arch, number, tuple(arguments))
    assert MACHINES[machine.name, Reach.OWN].run(call) == KILL


I386 = 0x40000003


def test_the_32_bit_entry_kills() -> None:
    assert MACHINES["x86_64", Reach.OWN].run(Call(I386, 20)) == KILL


@settings(deadline=None)
@given(number=st.integers(0, 600))
def test_the_x32_abi_kills(number: int) -> None:
    call = Call(X86_64.audit_id, 0x40000000 | number)
    assert MACHINES["x86_64", Reach.OWN].run(call) == KILL


@BOTH
@pytest.mark.parametrize(
    ("flag", "name"),
    [
        (0x00020000, "mount"),
        (0x02000000, "cgroup"),
        (0x04000000, "uts"),
        (0x08000000, "ipc"),
        (0x10000000, "user"),
        (0x20000000, "pid"),
        (0x40000000, "net"),
        (0x00008000, "sibling"),
        (0x00002000, "ptrace"),
    ],
)
def test_clone_makes_no_namespace_and_no_sibling(machine: Architecture, flag: int, name: str) -> None:
    threads = 0x003D0F00
    assert verdict(machine, "clone", threads) == ALLOW
    assert verdict(machine, "clone", signal.SIGCHLD) == ALLOW
    assert verdict(machine, "clone", threads | flag) == errno.EPERM
    assert verdict(machine, "clone", flag | 0xFFFF_FFFF_0000_0000) == errno.EPERM


@BOTH
def test_files_are_never_made_set_id(machine: Architecture) -> None:
    creating = os.O_CREAT | os.O_WRONLY
    for bit in (0o4000, 0o2000, 0o6000):
        assert verdict(machine, "openat", 0, 0, creating, 0o755 | bit) == errno.EPERM
        assert verdict(machine, "openat", 0, 0, os.O_TMPFILE | os.O_RDWR, 0o755 | bit) == errno.EPERM
        assert verdict(machine, "fchmod", 3, 0o755 | bit) == errno.EPERM
        assert verdict(machine, "fchmodat", 0, 0, 0o755 | bit) == errno.EPERM
        assert verdict(machine, "fchmodat2", 0, 0, 0o755 | bit, 0) == errno.EPERM
        assert verdict(machine, "mknodat", 0, 0, 0o100755 | bit) == errno.EPERM
    for name, place in (("open", 2), ("creat", 1), ("chmod", 1), ("mknod", 1)):
        if name in machine.numbers:
            arguments = [0, creating, 0, 0]
            arguments[place] = 0o4755
            assert verdict(machine, name, *arguments) == errno.EPERM
    assert verdict(machine, "openat", 0, 0, creating, 0o1777) == ALLOW
    assert verdict(machine, "fchmodat", 0, 0, 0o1777) == ALLOW


@BOTH
def test_the_mode_of_an_opening_that_creates_nothing_is_not_looked_at(machine: Architecture) -> None:
    assert verdict(machine, "openat", 0, 0, os.O_RDONLY | os.O_DIRECTORY, 0o6755) == ALLOW


@BOTH
def test_only_fifos_and_files_are_nodes(machine: Architecture) -> None:
    assert verdict(machine, "mknodat", 0, 0, 0o010600) == ALLOW
    assert verdict(machine, "mknodat", 0, 0, 0o100600) == ALLOW
    assert verdict(machine, "mknodat", 0, 0, 0o020600) == errno.EPERM
    assert verdict(machine, "mknodat", 0, 0, 0o060600) == errno.EPERM


@BOTH
@ANY_REACH
def test_no_family_but_unix_exists(machine: Architecture, reach: Reach) -> None:
    for family in itertools.chain(range(46), [0xFFFF_FFFF, 1 << 31]):
        expected = ALLOW if family == 1 and reach is Reach.OWN else errno.EAFNOSUPPORT
        assert verdict(machine, "socket", family, 1, 0, reach=reach) == expected
    assert verdict(machine, "socketpair", 1, 1 | 0o2000000, 0, reach=reach) == ALLOW
    assert verdict(machine, "socketpair", 2, 1, 0, reach=reach) == errno.EAFNOSUPPORT


@BOTH
def test_a_shared_network_leaves_only_connected_pairs(machine: Architecture) -> None:
    datagram = 2
    assert verdict(machine, "socketpair", 1, datagram, 0, reach=Reach.HOST) == errno.EPROTONOSUPPORT
    assert verdict(machine, "socketpair", 1, datagram, 0) == ALLOW
    for name in ("connect", "bind", "listen", "accept4", "sendmmsg"):
        assert verdict(machine, name, reach=Reach.HOST) == errno.EPERM
        assert verdict(machine, name) == ALLOW


@BOTH
def test_on_the_hosts_names_nothing_acts_by_a_bare_name(machine: Architecture) -> None:
    names = ["chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "utime", "utimes", "futimesat"]
    for name in (*names, "inotify_init1", "inotify_add_watch"):
        if name in machine.numbers:
            assert verdict(machine, name, 0, 0, 0o644, reach=Reach.HOST) == errno.EPERM
            assert verdict(machine, name, 0, 0, 0o644) == ALLOW
    path = 0x7FFF_0000_1000
    assert verdict(machine, "utimensat", -100, path, 0, 0) == ALLOW
    for pointer in (path, 0xFFFF_0000_0000_0000, 0x1000):
        assert verdict(machine, "utimensat", -100, pointer, 0, 0, reach=Reach.HOST) == errno.EPERM
    assert verdict(machine, "utimensat", 3, 0, 0, 0, reach=Reach.HOST) == ALLOW
    assert verdict(machine, "fchmod", 3, 0o644, reach=Reach.HOST) == ALLOW


@BOTH
@pytest.mark.parametrize(
    ("name", "mine", "others"),
    [
        ("prlimit64", (0,), (4321,)),
        ("sched_setaffinity", (0,), (4321,)),
        ("sched_setparam", (0,), (4321,)),
        ("sched_setscheduler", (0, 0), (4321, 0)),
        ("sched_setscheduler", (0, 3), (0, 1)),
        ("setpriority", (0, 0), (0, 4321)),
        ("setpriority", (0, 0), (2, 0)),
        ("ioprio_set", (1, 0), (3, 0)),
        ("personality", (0xFFFF_FFFF,), (0x0040000,)),
        ("prctl", (15,), (22,)),
        ("fcntl", (3, 1030), (3, 1031)),
        ("fcntl", (3, 4), (3, 8)),
    ],
)
def test_a_program_changes_only_itself(
    machine: Architecture, name: str, mine: tuple[int, ...], others: tuple[int, ...]
) -> None:
    assert verdict(machine, name, *mine) == ALLOW
    assert verdict(machine, name, *others) == errno.EPERM


@BOTH
def test_nothing_types_into_a_terminal(machine: Architecture) -> None:
    assert verdict(machine, "ioctl", 0, 0x5412) == errno.ENOTTY
    assert verdict(machine, "ioctl", 0, 0xFFFF_FFFF_0000_5412) == errno.ENOTTY
    assert verdict(machine, "ioctl", 0, 0x541C) == errno.ENOTTY
    assert verdict(machine, "ioctl", 0, 0x5401) == ALLOW


@BOTH
def test_no_packet_filter_is_attached_to_a_socket(machine: Architecture) -> None:
    assert verdict(machine, "setsockopt", 3, 1, 20) == ALLOW
    assert verdict(machine, "setsockopt", 3, 1, 26) == errno.ENOPROTOOPT
    assert verdict(machine, "setsockopt", 3, 1, 50) == errno.ENOPROTOOPT
    assert verdict(machine, "setsockopt", 3, 6, 2) == errno.ENOPROTOOPT


@BOTH
@ANY_REACH
@settings(deadline=None)
@given(st.data())
def test_every_call_of_the_tables_gets_what_the_rules_say(
    machine: Architecture, reach: Reach, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(machine.numbers)))
    arguments = data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=6))
    found = verdict(machine, name, *arguments, reach=reach)
    if name in rules.ALLOWED:
        assert found == ALLOW
    elif name in rules.ABSENT:
        assert found == rules.ABSENT[name]
    elif name not in rules.CHECKED | rules.CHECKED_BY_REACH[reach] and name not in rules.ALLOWED_ON_OWN_NAMES:
        assert found == errno.EPERM


def test_every_name_in_the_rules_is_a_call_and_stands_in_one_list() -> None:
    lists = [
        set(rules.ALLOWED),
        set(rules.ALLOWED_ON_OWN_NAMES),
        set(rules.ABSENT),
        set(rules.CHECKED),
        set(rules.CHECKED_BY_REACH[Reach.OWN]) | set(rules.CHECKED_BY_REACH[Reach.HOST]),
    ]
    known = set(X86_64.numbers) | set(AARCH64.numbers)
    assert set().union(*lists) - known == set()
    assert [one & other for one, other in itertools.combinations(lists, 2) if one & other] == []


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="'riscv64'; there are tables for aarch64"):
        compile_filter("riscv64")


def test_the_filter_is_the_same_on_every_call() -> None:
    assert compile_filter("x86_64") == compile_filter("x86_64")
    assert compile_filter("arm64") == compile_filter("aarch64")
