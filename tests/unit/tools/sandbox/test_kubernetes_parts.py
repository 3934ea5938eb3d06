"""The pure parts of the Kubernetes tier: what is asked of the cluster, what a log says, what comes back."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tools.sandbox.kubernetes.files import UnpackError, pack, unpack
from services.tools.sandbox.kubernetes.frames import Frame, FrameReader, Kind
from services.tools.sandbox.kubernetes.manifest import PodSettings, amount, job, pod_spec, secret, verify
from services.tools.sandbox.model import SetupFailedError
from services.tools.sandbox.probes.cases import PROBE_LIMITS

IMAGE = "registry/sandbox@sha256:" + "0" * 64
SETTINGS = PodSettings("kala-sandboxes", IMAGE, "gvisor", "tools-0")


@pytest.mark.parametrize("image", ["sandbox:latest", "sandbox", "sandbox@sha256:12", ""])
def test_an_image_that_is_not_pinned_is_refused(image: str) -> None:
    with pytest.raises(SetupFailedError, match="not pinned"):
        replace(SETTINGS, image=image)


def test_a_plain_pod_is_refused() -> None:
    with pytest.raises(SetupFailedError, match="runtime_class"):
        replace(SETTINGS, runtime_class="")


def test_a_job_ends_and_deletes_itself() -> None:
    asked = job("kala-run-1", SETTINGS, PROBE_LIMITS, uid=200_001)["spec"]
    assert asked["backoffLimit"] == 0
    assert asked["activeDeadlineSeconds"] >= PROBE_LIMITS.wall_seconds
    assert asked["ttlSecondsAfterFinished"] <= 60


def test_a_secret_goes_with_its_job() -> None:
    made = secret("kala-run-1", SETTINGS, "uid-1", {"source": b"x"})
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert made["immutable"] is True


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


ASKED = pod_spec("kala-run-1", SETTINGS, PROBE_LIMITS, uid=200_001)


@pytest.mark.parametrize("path", leaves(ASKED), ids=lambda path: ".".join(map(str, path)))
def test_a_change_of_any_field_is_seen(path: tuple[str | int, ...]) -> None:
    spec = json.loads(json.dumps(ASKED))
    verify({"spec": spec}, ASKED)
    where = spec
    for key in path[:-1]:
        where = where[key]
    value = where[path[-1]]
    where[path[-1]] = (
        (not value) if isinstance(value, bool) else f"{value}9" if isinstance(value, str) else value + 1
    )
    with pytest.raises(SetupFailedError, match="the cluster changed"):
        verify({"spec": spec}, ASKED)


def test_an_unset_protection_is_a_change_and_an_unset_privilege_is_none() -> None:
    spec = json.loads(json.dumps(ASKED))
    del spec["hostNetwork"]
    verify({"spec": spec}, ASKED)
    del spec["securityContext"]["runAsNonRoot"]
    with pytest.raises(SetupFailedError, match="runAsNonRoot"):
        verify({"spec": spec}, ASKED)
    with pytest.raises(SetupFailedError, match="no spec"):
        verify({}, ASKED)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("1500m", 1.5), ("64Mi", 64 << 20), ("2k", 2000), ("x", None)]
)
def test_quantities_are_read(text: str, value: float | None) -> None:
    assert amount(text) == value


def line(kind: str, data: bytes) -> bytes:
    return b"kala1 " + kind.encode() + b" " + base64.b64encode(data) + b"\n"


@given(
    st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=99)), max_size=9), st.integers(1, 40)
)
def test_frames_come_out_as_they_went_in_wherever_the_log_is_cut(frames, size: int) -> None:
    log = b"".join(line(kind.value.decode(), data) for kind, data in frames)
    reader = FrameReader()
    read = [frame for at in range(0, len(log), size) for frame in reader.feed(log[at : at + size])]
    assert read == [Frame(kind, data) for kind, data in frames]


@given(st.binary(max_size=400))
def test_no_log_breaks_the_reader(log: bytes) -> None:
    reader = FrameReader()
    reader.feed(log)
    assert isinstance(reader.noise, str)


def test_what_is_no_frame_is_kept_for_people() -> None:
    reader = FrameReader()
    assert reader.feed(b"Traceback: boom\nkala1 out !!!\nkala1 what e30=\n") == []
    assert "boom" in reader.noise
    reader.feed(b"x" * 100_000)
    assert len(reader.noise) < 5_000


def test_files_come_back_as_they_went(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a").write_bytes(b"\0\xff")
    (tmp_path / "out").mkdir()
    unpack(pack(tmp_path / "in"), tmp_path / "out", PROBE_LIMITS)
    assert (tmp_path / "out/deep/a").read_bytes() == b"\0\xff"
    assert pack(tmp_path / "out/deep/..") != b""


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, mode
    return info


def packed(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(b"\0" * info.size))
    return zlib.compress(buffer.getvalue())


@pytest.mark.parametrize(
    "hostile",
    [
        member("../out-of-it"),
        member("/tmp/kala-absolute"),
        member("a/../../b"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "/etc/passwd"),
        member("pipe", tarfile.FIFOTYPE),
        member("disk", tarfile.BLKTYPE),
        member("d/" * 70 + "x"),
    ],
    ids=lambda info: info.name[:20],
)
def test_what_comes_back_makes_nothing_but_plain_files_inside(
    tmp_path: Path, hostile: tarfile.TarInfo
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    unpack(packed(hostile, member("good")), out, PROBE_LIMITS)
    assert [path.name for path in out.iterdir()] == ["good"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_set_id_bits_do_not_come_back(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    unpack(packed(member("tool", mode=0o6755)), tmp_path / "out", PROBE_LIMITS)
    assert (tmp_path / "out/tool").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(packed(member("large", size=40 << 20)), id="a bomb"),
        pytest.param(packed(*(member(f"f{i}") for i in range(300))), id="too many"),
        pytest.param(packed(member("twice"), member("twice")), id="a name twice"),
        pytest.param(b"no zlib", id="no zlib"),
        pytest.param(zlib.compress(b"no tar" * 200), id="no tar"),
    ],
)
def test_what_comes_back_beyond_the_limits_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UnpackError):
        unpack(data, tmp_path / "out", PROBE_LIMITS)
