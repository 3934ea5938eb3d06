"""Puts one gateway together from its settings; everything opened is closed in reverse order."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.app import LOG_PREFIX, REST_PREFIX, build_app
from gateway.background import Background
from gateway.bridge import Bridge, LocalHandler
from gateway.bridge_routes import Routes
from gateway.checkpoint_pin import CheckpointPin, load_verifiers
from gateway.connection_test import ConnectionTest
from gateway.core import Core, build_core, chat_limits, text_tasks
from gateway.database import open_database
from gateway.erasure import Eraser, Erasures, spool_eraser
from gateway.errors import google_body
from gateway.features import FEATURES, Feature
from gateway.gate import Gate
from gateway.health import Health
from gateway.identity import Pseudonyms
from gateway.key_ring import KeyRing
from gateway.key_store import KeyStore
from gateway.keys_service import KeysService
from gateway.ledger import Ledger
from gateway.limits.opening import open_limiter
from gateway.log_mirror import LogMirror
from gateway.models import Models
from gateway.moderations import Moderations
from gateway.oidc.opening import open_tokens
from gateway.openapi import OpenApi
from gateway.part_erasers import tools_eraser, trainer_eraser
from gateway.readings import Readings
from gateway.routing import ApiRoute
from gateway.text_tasks import RERANK
from kala.audit.v1.audit_pb2_grpc import AuditPrivacyServiceStub, AuditReadServiceStub
from kala.errors import InvalidArgumentError
from services.common.audit_client import AuditWriter
from services.common.channel import open_channel
from services.common.peers import AUDIT, ETHICS, GATEWAY, INFERENCE, TOOLS, TRAINER
from services.common.secret_keys import load_or_create_secret_key
from services.common.spool import Spool

if TYPE_CHECKING:
    import grpc
    from starlette.applications import Starlette

    from gateway.config import GatewaySettings
    from services.common.telemetry import Telemetry

DISTRIBUTION: Final = "kala-suite"

IDEMPOTENT: Final = {
    ETHICS: ("/kala.ethics.v1.EthicsService/CheckAction", "/kala.ethics.v1.EthicsService/Score"),
    INFERENCE: (
        "/kala.inference.v1.InferenceService/ListModels",
        "/kala.inference.v1.InferenceService/ListBackends",
    ),
}
"""Calls that may be tried again, for they have no effect. An append is not among them: its writer has a spool."""


@asynccontextmanager
async def gateway_app(settings: GatewaySettings, telemetry: Telemetry) -> AsyncIterator[Starlette]:
    """Open a gateway's database, spool and channels, and give its application while they are open."""
    async with AsyncExitStack() as stack:
        channels = {
            part: await stack.enter_async_context(
                open_channel(
                    address, peer_name=GATEWAY, tls=settings.tls, idempotent=IDEMPOTENT.get(part, ())
                )
            )
            for part, address in _addresses(settings).items()
        }
        engine = open_database(settings.database)
        stack.callback(engine.dispose)
        store = KeyStore(engine)
        pseudonyms = Pseudonyms(_secret(settings.pepper_file))
        writer = await stack.enter_async_context(_writer(settings, channels[AUDIT], stack))
        ledger = Ledger(writer)
        background = Background()
        limiter = await open_limiter(settings, engine, background, stack)
        if (pin := _pin(settings, channels[AUDIT], writer)) is not None:
            stack.callback(background.keep(pin.follow()).cancel)
        ring = KeyRing(store, cache_seconds=settings.key_cache_seconds, clock=time.monotonic, now=_now)
        gate = Gate(
            ring=ring,
            pseudonyms=pseudonyms,
            ledger=ledger,
            limiter=limiter,
            tokens=await open_tokens(settings, stack),
            max_concurrent=settings.max_concurrent_requests,
            clock=time.monotonic,
        )
        keys = KeysService(
            store=store,
            ring=ring,
            ledger=ledger,
            pseudonyms=pseudonyms,
            now=_now,
            randomness=secrets.token_bytes,
            has_prices=bool(settings.prices),
        )
        core = build_core(
            settings,
            channels,
            stack=stack,
            engine=engine,
            gate=gate,
            pseudonyms=pseudonyms,
            ledger=ledger,
            background=background,
        )
        features = [await open_feature(core) for open_feature in FEATURES]
        erasers = {"gateway": spool_eraser(writer)}
        for feature in features:
            erasers.update(feature.erasers)
        # Last: what the features have at work for a person would bring it back there.
        erasers.update(_part_erasers(settings, channels))
        erasures = Erasures(AuditPrivacyServiceStub(channels[AUDIT]), pseudonyms, erasers)
        own = keys.handlers | erasures.handlers
        for feature in features:
            own.update(feature.handlers)
        yield _app(core, features, telemetry, own)


def _app(
    core: Core, features: Sequence[Feature], telemetry: Telemetry, own: Mapping[str, LocalHandler]
) -> Starlette:
    desk, inference = core.desk, core.inference
    reranks = text_tasks(RERANK, core.settings, desk, core.guarded, core.bindings, inference.Rerank)
    moderations = _moderations(core)
    models = Models(gate=desk.gate, inference=inference, started_at=int(time.time()))
    connections = ConnectionTest(gate=desk.gate, inference=inference)
    health = Health(
        ethics=core.channels[ETHICS], ledger=desk.ledger, registry=telemetry.registry, clock=time.monotonic
    )
    mirror = LogMirror(gate=desk.gate, audit=AuditReadServiceStub(core.channels[AUDIT]))
    openapi = OpenApi(list(core.bindings.values()), version=_version(), features=features)
    api = [
        ApiRoute("POST", "/v1/chat/completions", core.chat.complete),
        ApiRoute("POST", "/v1/completions", core.completions.complete),
        ApiRoute("POST", "/v1/embeddings", core.embeddings.answer),
        ApiRoute("POST", "/v1/rerank", reranks.answer),
        ApiRoute("POST", "/v1/moderations", moderations.moderate),
        ApiRoute("GET", "/v1/models", models.list_all),
        ApiRoute("GET", "/v1/models/{id:path}", models.get),
        *(route for feature in features for route in feature.routes),
        ApiRoute("POST", "/api/test-lmstudio", connections.lm_studio),
        ApiRoute("GET", "/healthz", health.live),
        ApiRoute("GET", "/readyz", health.ready),
        ApiRoute("GET", "/metrics", health.metrics),
        ApiRoute("GET", "/openapi.json", openapi.serve),
        ApiRoute("GET", LOG_PREFIX + "{path:path}", mirror.serve, google_body),
    ]
    bridge = _bridge(core, own)
    posts = {
        REST_PREFIX: bridge.serve,
        **{route.path: route.handler for route in api if route.method == "POST"},
    }
    for feature in features:
        if feature.begin is not None:
            feature.begin(posts)
    return build_app(api, bridge=bridge, telemetry=telemetry.rpc)


def _moderations(core: Core) -> Moderations:
    return Moderations(
        gate=core.desk.gate,
        ledger=core.desk.ledger,
        ethics=core.ethics,
        background=core.background,
        limits=chat_limits(core.settings),
        allows_unjudged=core.settings.unjudged_parts == "allow",
        may_spool=core.desk.may_spool,
    )


def _bridge(core: Core, own: Mapping[str, LocalHandler]) -> Bridge:
    return Bridge(
        routes=Routes(list(core.bindings.values())),
        gate=core.desk.gate,
        ledger=core.desk.ledger,
        guarded=core.guarded,
        readings=Readings(ethics=core.ethics, ledger=core.desk.ledger),
        channels=dict(core.channels),
        local=own,
        body_timeout_seconds=core.settings.body_timeout_seconds,
        max_act_seconds=core.settings.max_act_seconds,
        may_spool=core.desk.may_spool,
    )


def _addresses(settings: GatewaySettings) -> dict[str, str]:
    addresses = {
        ETHICS: settings.ethics_address,
        INFERENCE: settings.inference_address,
        AUDIT: settings.audit_address,
        TOOLS: settings.tools_address,
        TRAINER: settings.trainer_address,
    }
    return {part: address for part, address in addresses.items() if address is not None}


def _writer(settings: GatewaySettings, channel: grpc.aio.Channel, stack: AsyncExitStack) -> AuditWriter:
    spool = None
    if settings.audit_policy == "spool":
        settings.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        spool = Spool(
            settings.spool_dir, _secret(settings.spool_key_file), max_bytes=settings.spool_max_bytes
        )
        stack.callback(spool.close)
    # Answers name their receipts; a proof is fetched by its id.
    return AuditWriter(channel, producer_id=settings.producer_id, spool=spool, with_proof=False)


def _part_erasers(settings: GatewaySettings, channels: dict[str, grpc.aio.Channel]) -> dict[str, Eraser]:
    """The other parts that keep something of a person, beside the log."""
    parts: dict[str, Eraser] = {}
    if settings.tools_address is not None:
        parts[TOOLS] = tools_eraser(settings.tools_address, settings.tls)
    if TRAINER in channels:
        parts[TRAINER] = trainer_eraser(channels[TRAINER])
    return parts


def _pin(settings: GatewaySettings, channel: grpc.aio.Channel, writer: AuditWriter) -> CheckpointPin | None:
    if settings.checkpoint_file is None:
        return None
    if settings.audit_vkey_file is None:
        raise InvalidArgumentError("KALA_GATEWAY_AUDIT_VKEY_FILE", "is needed to pin the log's checkpoints")
    return CheckpointPin(
        settings.checkpoint_file,
        trusted=load_verifiers(settings.audit_vkey_file),
        log=AuditReadServiceStub(channel),
        seen=lambda: writer.checkpoint,
    )


def _secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return load_or_create_secret_key(path)


def _now() -> datetime:
    return datetime.now(UTC)


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0.0.0"
