"""The settings of the inference service; the only place of it that reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from kala.errors import InvalidArgumentError
from services.common.peers import ETHICS, GATEWAY, GRPC_PORTS, INFERENCE, METRICS_PORTS, TOOLS
from services.common.settings import AllowedPeers, ListenAddress, MetricsPort, aliases
from services.inference.base_url import parse_base_url
from services.inference.config_remote import RemoteSettings
from services.inference.protection.limits import IDLE_LOOKS, LATENCY_SECONDS
from services.inference.pythia.weights import DOWNLOAD_GIGABYTES, pythia_name

SECTION: Final = INFERENCE

MAX_ACT_SECONDS: Final = 900.0
"""The bound that the design gives every act; also keeps a forgotten stream from living for ever."""

MAX_OUTPUT_TOKENS: Final = 16_384
"""More than a long answer with its reasoning; a runaway generation ends here."""

LM_STUDIO_URL: Final = "http://127.0.0.1:1234"
LLAMACPP_URL: Final = "http://127.0.0.1:8080"
MLX_URL: Final = "http://127.0.0.1:8080"
OLLAMA_URL: Final = "http://127.0.0.1:11434"

HUB_URL: Final = "https://huggingface.co"

MAX_PULL_GIGABYTES: Final = 60.0
"""Pythia 12b twice over; a slip of the tongue must not fill a disk."""

EMBEDDED_MODEL_DIR: Final = Path(__file__).parent / "embedded" / "model"

Switch = Annotated[
    bool | None,
    Field(description="`false` never uses it, `true` expects it at its usual address, unset finds out."),
]
Key = Annotated[SecretStr | None, Field(description="Sent as a Bearer token.")]


class InferenceSettings(RemoteSettings):
    """Which backends there are and how long to wait for them."""

    address: ListenAddress = f"127.0.0.1:{GRPC_PORTS[INFERENCE]}"
    allowed_peers: AllowedPeers = (GATEWAY, ETHICS, TOOLS)
    metrics_port: MetricsPort = METRICS_PORTS[INFERENCE]
    ethics_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of ethics' current and next key; without one nothing is cleared."),
    ] = ()
    spool_dir: Annotated[
        Path | None, Field(description="Where denials wait while audit is away; unset keeps none.")
    ] = None
    spool_key_file: Annotated[Path | None, Field(description="32-byte key that encrypts the spool.")] = None

    discover: Annotated[
        bool, Field(description="Look for model servers on their usual ports of this machine.")
    ] = False
    discovery_ports: Annotated[tuple[int, ...], Field(description="Where to look.")] = (
        1234,
        8080,
        11434,
        8081,
    )
    refresh_seconds: Annotated[float, Field(gt=0, description="How often every backend is looked at.")] = 10.0
    lmstudio_url: Annotated[
        str | None,
        Field(description="LM Studio, with or without /v1."),
        aliases("LM_STUDIO_BASE_URL", "LMSTUDIO_API_URL", "LMSTUDIO_HOST"),
    ] = None
    lmstudio_model: Annotated[
        str | None,
        Field(description="Model to ask for; unset or `local-model` means the one loaded."),
        aliases("LM_STUDIO_MODEL", "LMSTUDIO_MODEL"),
    ] = None
    lmstudio_timeout_seconds: Annotated[
        float | None,
        Field(
            gt=0,
            description="Longest wait for LM Studio's first byte, or for its whole answer where it does not stream.",
        ),
        aliases("LM_STUDIO_TIMEOUT_SECONDS"),
    ] = None
    lmstudio_enabled: Annotated[Switch, aliases("USE_LM_STUDIO", "LMSTUDIO_ENABLED")] = None
    lmstudio_api_key: Key = None

    llamacpp_url: Annotated[
        str | None, Field(description="llama-server."), aliases("LLAMACPP_SERVER_URL")
    ] = None
    llamacpp_model: Annotated[str | None, Field(description="Model to ask for.")] = None
    llamacpp_enabled: Annotated[Switch, aliases("LLAMACPP_ENABLED")] = None
    llamacpp_api_key: Key = None

    mlx_url: Annotated[str | None, Field(description="mlx_lm.server.")] = None
    mlx_model: Annotated[
        str | None,
        Field(description="Name to show for its model; requests always get the one it was started with."),
    ] = None
    mlx_enabled: Annotated[Switch, aliases("MLX_ENABLED")] = None

    ollama_url: Annotated[str | None, Field(description="Ollama."), aliases("OLLAMA_HOST")] = None
    ollama_model: Annotated[str | None, Field(description="Model to ask for."), aliases("OLLAMA_MODEL")] = (
        None
    )
    ollama_enabled: Switch = None

    model_size: Annotated[
        str | None,
        Field(description="Pythia to serve in process: 70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b or 12b."),
    ] = None
    model_dir: Annotated[
        Path | None, Field(description="Directory of a GPT-NeoX model to serve in process.")
    ] = None
    models_dir: Annotated[Path, Field(description="Where pulled models are kept, one directory each.")] = (
        Path("~/.cache/kala/models")
    )
    hub_url: Annotated[
        str,
        Field(description="Where models are pulled from; a mirror of the Hugging Face hub, or the hub."),
        aliases("HF_ENDPOINT"),
    ] = HUB_URL
    hub_token: Annotated[SecretStr | None, Field(description="Sent to the hub."), aliases("HF_TOKEN")] = None
    max_pull_gigabytes: Annotated[
        float, Field(gt=0, description="Largest model that may be pulled, in units of 10^9 bytes.")
    ] = MAX_PULL_GIGABYTES
    embedded: Annotated[bool, Field(description="Offer the embedded demo model.")] = True
    embedded_dir: Annotated[
        Path | None, Field(description="Directory of the embedded demo model; unset means the packaged one.")
    ] = None
    torch_threads: Annotated[
        int, Field(ge=0, description="Threads of the model in process; 0 takes half the cores.")
    ] = 0
    pythia_queue: Annotated[
        int, Field(ge=1, description="Requests that may wait for the model in process.")
    ] = 32
    pythia_batch: Annotated[
        int, Field(ge=1, le=256, description="Texts that the model in process generates at once.")
    ] = 8
    pythia_device: Annotated[
        str,
        Field(
            pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$",
            description="Where the model in process computes: auto, cpu, cuda, cuda:1, mps.",
        ),
    ] = "auto"
    pythia_dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        Field(description="Numbers that the model in process computes with."),
    ] = "auto"
    pythia_quantization: Annotated[
        Literal["none", "8bit", "4bit"],
        Field(description="How weights are held; 8bit and 4bit need `kala-suite[inference-quantized]`."),
    ] = "none"

    trainer_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of the trainer's current and next key; adapters are signed with it."),
    ] = ()
    tools_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of tools' current and next key, behind the gates that tools measured."),
    ] = ()
    audit_vkey_file: Annotated[
        Path | None,
        Field(
            description="The log's public key, one vkey line each; an adapter's gates must be in this log."
        ),
    ] = None
    gate_profiles: Annotated[
        tuple[Path, ...],
        Field(description="Gate profiles of which an adapter must have passed one; none means no adapter."),
    ] = ()
    adapter_revocations: Annotated[
        Path | None, Field(description="The trainer's signed list of revoked adapters, read when it changes.")
    ] = None
    adapters_dir: Annotated[Path, Field(description="The only place that adapters are loaded from.")] = Path(
        "~/.cache/kala/adapters"
    )
    allow_demo_profiles: Annotated[
        bool, Field(description="Accept gate profiles made for demonstrations; `kala up` alone sets it.")
    ] = False

    connect_seconds: Annotated[float, Field(gt=0, description="Longest wait for a connection.")] = 2.0
    first_byte_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="Longest wait for the first byte of a stream; a cold model reads its prompt first.",
        ),
    ] = 300.0
    idle_seconds: Annotated[float, Field(gt=0, description="Longest silence inside a stream.")] = 60.0
    max_act_seconds: Annotated[float, Field(gt=0, le=MAX_ACT_SECONDS, description="Longest generation.")] = (
        MAX_ACT_SECONDS
    )
    max_output_tokens: Annotated[
        int, Field(ge=1, description="Most tokens of one answer, also when a request names no limit.")
    ] = MAX_OUTPUT_TOKENS
    max_in_flight: Annotated[int, Field(ge=1, description="Connections to one backend.")] = 64
    max_waiting: Annotated[
        int,
        Field(
            ge=0, description="Requests that may wait for a connection to one backend; more go to the next."
        ),
    ] = 64
    health_seconds: Annotated[
        float, Field(gt=0, description="Longest time for one token of an idle model in memory.")
    ] = LATENCY_SECONDS
    idle_test_looks: Annotated[
        int,
        Field(ge=0, description="Looks after which an idle model is made to generate a token; 0 never does."),
    ] = IDLE_LOOKS

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.spool_dir is None) != (self.spool_key_file is None):
            raise ValueError("spool_dir and spool_key_file go together")
        for name in ("lmstudio_url", "llamacpp_url", "mlx_url", "ollama_url", "hub_url"):
            url = getattr(self, name)
            if url is None:
                continue
            try:
                parse_base_url(url, field=name)
            except InvalidArgumentError as error:
                raise ValueError(error.message) from error
        if self.model_size is not None:
            try:
                pythia_name(self.model_size)
            except KeyError:
                sizes = ", ".join(DOWNLOAD_GIGABYTES)
                raise ValueError(f"model_size must be one of {sizes}") from None
        return self
