import errno
from pathlib import Path

import pytest

from services.tools.sandbox.landlock import kernel
from services.tools.sandbox.landlock.confinement import (
    Confinement,
    Limit,
    filter_for_this_machine,
    rules,
)
from services.tools.sandbox.landlock.kernel import Access, LandlockUnavailableError

ASKED = Confinement(
    arguments=("/bin/true", "ü"),
    environment=(("A", "b"),),
    workspace="/w",
    scratch="/s",
    limits=(Limit("CORE", 0),),
    seccomp=b"\x00\xff" * 8,
    readable=("/host",),
    directory="/host",
    descriptors=(3,),
)


def test_a_confinement_survives_being_written_and_read() -> None:
    assert Confinement.from_json(ASKED.to_json()) == ASKED


def test_one_with_a_field_too_many_is_not_read() -> None:
    with pytest.raises(TypeError):
        Confinement.from_json(ASKED.to_json()[:-1] + ', "unconfined": true}')


def test_only_the_workspace_and_the_scratch_can_be_written() -> None:
    changes = (
        Access.REMOVE_DIR | Access.REMOVE_FILE | Access.MAKE_REG | Access.MAKE_DIR | Access.MAKE_SYM
        | Access.MAKE_FIFO | Access.TRUNCATE | Access.REFER
    )  # fmt: skip
    changing = {rule.path for rule in rules(ASKED) if rule.access & changes}
    assert changing == {"/w", "/s"}
    writing = {rule.path for rule in rules(ASKED) if rule.access & Access.WRITE_FILE}
    assert {path for path in writing if not path.startswith("/dev/")} == {"/w", "/s"}


def test_nothing_of_the_host_is_read_but_its_programs_and_what_was_named() -> None:
    read = {rule.path for rule in rules(ASKED)}
    assert not read & {"/", "/etc", "/proc", "/usr", "/usr/local", "/home", "/root", "/run", "/tmp", "/var"}
    assert "/host" in read


def test_no_device_and_no_socket_is_made_anywhere() -> None:
    never = Access.MAKE_CHAR | Access.MAKE_BLOCK | Access.MAKE_SOCK | Access.IOCTL_DEV
    assert [rule for rule in rules(ASKED) if rule.access & never] == []


@pytest.mark.parametrize(
    ("answer", "told"), [(0, "does not offer Landlock"), (5, "has ABI 5, 6 is needed")], ids=["none", "old"]
)
def test_too_little_landlock_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, answer: int, told: str
) -> None:
    monkeypatch.setattr(kernel, "abi", lambda: answer)
    with pytest.raises(LandlockUnavailableError, match=told) as caught:
        kernel.restrict([])
    assert "boot Linux 6.12 or newer" in caught.value.message


def test_the_filter_is_the_one_for_a_place_with_the_hosts_names() -> None:
    assert len(filter_for_this_machine()) % 8 == 0


def test_a_refused_call_is_raised_with_its_errno(tmp_path: Path) -> None:
    if kernel.abi() < kernel.REQUIRED_ABI:
        pytest.skip(f"the kernel's Landlock is older than ABI {kernel.REQUIRED_ABI}")
    with pytest.raises(OSError) as caught:
        kernel.restrict([kernel.Rule(str(tmp_path / "missing"), kernel.READ)])
    assert caught.value.errno == errno.ENOENT
