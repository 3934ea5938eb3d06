"""The hub itself, through huggingface_hub: what a repository holds, and its files one by one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import (
    FailedPreconditionError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from services.inference.pull.plan import RemoteFile, Source

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

LIST_SECONDS: Final = 30.0
SHA256_HEX_CHARS: Final = 64

_LIBRARY_SETTINGS: Final = {
    # One plain stream per file, whose bytes are counted and whose checksum is ours to verify.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A token of this machine's user is sent only where the settings name it.
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    # Standard error is for what went wrong.
    "HF_HUB_VERBOSITY": "error",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]


class Hub:
    """One hub; made in a process of its own, because the library reads the environment when it is imported."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        os.environ.update(_LIBRARY_SETTINGS)
        self._endpoint = endpoint.rstrip("/")
        self._token: str | bool = token or False

    def list(self, source: Source) -> Listing:
        """Say what the repository holds; raises the KalaError that tells why it cannot be known."""
        with self._in_words(source):
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint, token=self._token)
            info = api.model_info(
                source.repository, revision=source.revision, files_metadata=True, timeout=LIST_SECONDS
            )
        if not info.sha:
            raise UnavailableError(f"{self._endpoint} does not say which commit of {source} it has")
        return Listing(info.sha, tuple(_remote(sibling) for sibling in info.siblings or ()))

    def fetch(
        self, source: Source, commit: str, file: RemoteFile, into: Path, report: Callable[[int], None]
    ) -> None:
        """Download one file into a directory; `report` gets the bytes of each piece. Leaves no part of it on failure."""
        with self._in_words(source):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.utils.tqdm import tqdm

            class Bar(tqdm):
                """Tells what arrives, and draws nothing."""

                def __init__(self, *args: Any, **options: Any) -> None:  # Any: tqdm's own
                    super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]  # theirs

                def update(self, n: float | None = 1) -> bool | None:
                    report(int(n or 0))
                    return None

            hf_hub_download(
                source.repository,
                file.name,
                revision=commit,
                local_dir=into,
                endpoint=self._endpoint,
                token=self._token,
                tqdm_class=Bar,
            )

    @contextlib.contextmanager
    def _in_words(self, source: Source) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(
                "huggingface_hub is not installed; install `kala-suite[inference-pythia]`",
                reason="LIBRARIES_MISSING",
            ) from error
        except KalaError:
            raise
        except Exception as error:
            known = self._known(error, source)
            if known is None:
                raise
            raise known from error

    def _known(self, error: Exception, source: Source) -> KalaError | None:
        from huggingface_hub import errors

        hint = "" if self._token else "; a private one needs HF_TOKEN"
        known: tuple[tuple[type[Exception], KalaError], ...] = (
            (
                errors.GatedRepoError,
                PermissionDeniedError(
                    f"{source} is gated: accept its terms on {self._endpoint}/{source.repository}, and set HF_TOKEN"
                ),
            ),
            (
                errors.RevisionNotFoundError,
                NotFoundError(f"{source.repository} has no revision {source.revision!r}"),
            ),
            (
                errors.RepositoryNotFoundError,
                NotFoundError(f"{self._endpoint} has no repository {source.repository}{hint}"),
            ),
            (
                errors.OfflineModeIsEnabled,
                FailedPreconditionError(
                    f"HF_HUB_OFFLINE is set, so {source} cannot be fetched; unset it", reason="OFFLINE"
                ),
            ),
        )
        for kind, words in known:
            if isinstance(error, kind):
                return words
        if isinstance(error, errors.HfHubHTTPError) and (response := error.response) is not None:
            return UnavailableError(f"{self._endpoint} answered {response.status_code} for {source}")
        # Connection errors of the library's HTTP client are OSErrors only some of the time.
        is_network = isinstance(error, OSError) or "httpx" in type(error).__module__
        return unreachable(self._endpoint, source) if is_network else None


def unreachable(endpoint: str, source: Source) -> UnavailableError:
    """Say what to do on a machine without a way to the hub."""
    return UnavailableError(
        f"this machine cannot reach {endpoint}, so {source} was not fetched: connect it, set KALA_INFERENCE_HUB_URL to a "
        "mirror, or copy the files from a machine that has them into a folder of KALA_INFERENCE_MODELS_DIR",
        reason="HUB_UNREACHABLE",
    )


def _remote(sibling: RepoSibling) -> RemoteFile:
    digest = None if sibling.lfs is None else sibling.lfs.sha256
    return RemoteFile(
        name=sibling.rfilename,
        # Not below nothing: it would make room for others in the sum.
        size=max(0, int((sibling.lfs.size if sibling.lfs else sibling.size) or 0)),
        sha256=bytes.fromhex(digest) if digest and len(digest) == SHA256_HEX_CHARS else None,
        git_sha1=sibling.blob_id or "",
    )
