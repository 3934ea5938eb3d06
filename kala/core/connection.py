"""How a session finds its suite: the one it is told, the one that runs here, or a private one of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.client import MODEL_AUTO, KalaClient
from kala.core.inference import InferenceConfig
from kala.core.lmstudio_adapter import LOCAL_MODEL, LMStudioConfig
from kala.core.places import place
from kala.errors import FailedPreconditionError, KalaError, UnavailableError
from kala.replies import ChatReply
from kala.suite.layout import StateLayout
from kala.target import URL_VARIABLE, Target, find_target, read_cli_key

if TYPE_CHECKING:
    from kala.client_async import AsyncKalaClient

LMSTUDIO: Final = "lmstudio"
PYTHIA: Final = "pythia"

_CONFLICTING: Final = (
    "LM_STUDIO_BASE_URL",
    "LMSTUDIO_API_URL",
    "LMSTUDIO_HOST",
    "LM_STUDIO_MODEL",
    "LMSTUDIO_MODEL",
    "USE_LM_STUDIO",
    "LMSTUDIO_ENABLED",
    "LLM_PROVIDER",
)
"""Variables of the environment that a configuration given in code overrules in a private suite."""

_NO_BACKEND: Final = ("BACKENDS_UNAVAILABLE", "ALL_BACKENDS_FAILED", "NO_BACKEND")


@dataclass(frozen=True, slots=True)
class Connection:
    """An open suite, and how requests of this configuration are put to it."""

    client: KalaClient
    model: str = MODEL_AUTO
    provider: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)  # Any: OpenAI's open set of parameters
    lmstudio_url: str | None = None
    is_private: bool = False

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        timeout_seconds: float | None = None,
        **wishes: Any,  # Any: those of `wording`
    ) -> ChatReply:
        """Ask for one answer; what is None takes the configuration's value, and the wait for it the client's."""
        with self.in_words():
            return self.client.chat(
                messages, timeout_seconds=timeout_seconds, **self.wording(model=model, **wishes)
            )

    def wording(
        self,
        *,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        workspace: str | None = None,
        approvals: Mapping[str, str] | None = None,
        stored: str = "",
    ) -> dict[str, Any]:
        """What a client's `chat` or `stream` is given beside the messages.

        With a `workspace` the model may call KALA's tools, which work there; `approvals` are those of calls that waited.
        `stored` names the session that the gateway adds the turn to.
        """
        given: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        if workspace is not None:
            given |= {"kala_tools": "auto", "kala_workspace": workspace, "kala_approvals": approvals or None}
        if stored:
            given["kala_session"] = stored
        return {
            **self.defaults,
            **{name: value for name, value in given.items() if value is not None},
            "model": model if model and model != LOCAL_MODEL else self.model,
            "provider": self.provider,
        }

    def asynchronous(self) -> AsyncKalaClient:
        """Another client of the same suite, for an event loop; its caller closes it."""
        from kala.client_async import AsyncKalaClient

        return AsyncKalaClient(self.client.target)

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Let errors be told as the LM Studio guide words them, with their cures."""
        try:
            yield
        except KalaError as error:
            told = self._in_words(error)
            if told is error:
                raise
            raise told from error

    def _in_words(self, error: KalaError) -> KalaError:
        """The error as the LM Studio guide words it, with its cure."""
        if self.lmstudio_url is None:
            return error
        if error.reason in _NO_BACKEND:
            return UnavailableError(
                f"Could not connect to LM Studio at {self.lmstudio_url}: open LM Studio, load a model, and click Start "
                f"Server in the Local Server tab. ({error.message})",
                reason=error.reason,
            )
        if error.reason == "NO_MODEL_LOADED":
            return FailedPreconditionError(
                f"No model loaded in LM Studio at {self.lmstudio_url}: choose one in the Local Server tab and click "
                f"Load Model. ({error.message})",
                reason=error.reason,
            )
        return error


@contextlib.contextmanager
def connect(
    *,
    lmstudio_config: LMStudioConfig | None = None,
    inference_config: InferenceConfig | None = None,
    url: str | None = None,
    api_key: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Connection]:
    """Open a connection for one configuration.

    A suite named by `url` or KALA_URL is used as it is, and must have the wanted backend. Without one, the suite that
    runs in the default state directory serves if it has that backend; else a private suite is started and stopped.
    """
    environ = os.environ if environ is None else environ
    wanted = _Wanted(lmstudio_config, inference_config)
    with ExitStack() as stack:
        if url is not None or environ.get(URL_VARIABLE):
            client = stack.enter_context(KalaClient(find_target(url=url, key=api_key, environ=environ)))
            if (problem := wanted.missing_in(client)) is not None:
                raise FailedPreconditionError(problem)
            yield wanted.connection(client, is_private=False)
            return
        running = _running_client(stack, wanted, environ)
        if running is not None:
            yield wanted.connection(running, is_private=False)
            return
        client = stack.enter_context(_private_client(wanted, environ))
        yield wanted.connection(client, is_private=True)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a session's configuration asks of a suite."""

    lmstudio: LMStudioConfig | None
    pythia: InferenceConfig | None

    def connection(self, client: KalaClient, *, is_private: bool) -> Connection:
        if self.lmstudio is not None:
            config = self.lmstudio
            return Connection(
                client,
                MODEL_AUTO if config.model in {LOCAL_MODEL, ""} else config.model,
                LMSTUDIO,
                {"temperature": config.temperature, "max_tokens": config.max_tokens, "top_p": config.top_p},
                config.base_url,
                is_private,
            )
        if self.pythia is not None:
            wanted = self.pythia
            return Connection(
                client,
                MODEL_AUTO,
                PYTHIA,
                {
                    "temperature": wanted.temperature,
                    "max_tokens": wanted.max_new_tokens,
                    "top_p": wanted.top_p,
                },
                is_private=is_private,
            )
        return Connection(client, is_private=is_private)

    def missing_in(self, client: KalaClient) -> str | None:
        """What the suite lacks, in words; None when it has the wanted backend."""
        if self.lmstudio is None and self.pythia is None:
            return None
        backends = client.backends()
        if self.lmstudio is not None:
            wanted = place(self.lmstudio.base_url)
            if any(
                each.get("kind") == LMSTUDIO and place(str(each.get("url"))) == wanted for each in backends
            ):
                return None
            return (
                f"the suite at {client.target.url} has no LM Studio at {self.lmstudio.base_url}: configure it there "
                "(KALA_INFERENCE_LMSTUDIO_URL), or unset KALA_URL to let this session start a private suite"
            )
        if any(each.get("name") == f"backends/{PYTHIA}" for each in backends):
            return None
        return f"the suite at {client.target.url} serves no Pythia model: set KALA_INFERENCE_MODEL_SIZE there"

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of a private suite: exactly the wanted backend, nothing found by chance beside it."""
        ours = {name: value for name, value in environ.items() if name not in _CONFLICTING}
        # Its only user is this process, which could read the directory anyway.
        ours["KALA_TOOLS_ALLOW_HOST_DIRECTORY"] = "true"
        if self.lmstudio is not None:
            ours |= {
                "KALA_INFERENCE_DISCOVER": "false",
                "KALA_INFERENCE_EMBEDDED": "false",
                "KALA_INFERENCE_LMSTUDIO_ENABLED": "true",
                "KALA_INFERENCE_LMSTUDIO_URL": self.lmstudio.base_url,
                "KALA_INFERENCE_LMSTUDIO_API_KEY": self.lmstudio.api_key,
            }
            if self.lmstudio.model not in {LOCAL_MODEL, ""}:
                ours["KALA_INFERENCE_LMSTUDIO_MODEL"] = self.lmstudio.model
        elif self.pythia is not None:
            ours |= {
                "KALA_INFERENCE_DISCOVER": "false",
                "KALA_INFERENCE_EMBEDDED": "false",
                "KALA_INFERENCE_MODEL_SIZE": self.pythia.model_size,
                "KALA_INFERENCE_PYTHIA_QUANTIZATION": self.pythia.quantization or "none",
            }
        return ours


def _running_client(stack: ExitStack, wanted: _Wanted, environ: Mapping[str, str]) -> KalaClient | None:
    """A client of the suite in the default state directory, when one runs that has what is wanted."""
    try:
        client = KalaClient(find_target(environ=environ))
        stack.enter_context(client)
        return client if wanted.missing_in(client) is None else None
    except KalaError:
        return None


@contextlib.contextmanager
def _private_client(wanted: _Wanted, environ: Mapping[str, str]) -> Iterator[KalaClient]:
    from kala.suite.control import private_suite

    root = Path(tempfile.mkdtemp(prefix="kala-session-"))
    try:
        layout = StateLayout.at(root)
        with (
            private_suite(layout, environment=wanted.environment(environ)) as record,
            KalaClient(Target(record.gateway_url, read_cli_key(layout))) as client,
        ):
            yield client
    finally:
        shutil.rmtree(root, ignore_errors=True)
