"""EthicsService: contract messages in, judgements out, and a clearance for every action that is allowed."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import clearance_pb2, decision_pb2
from kala.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from kala.ethics.constitution import VerifiedConstitution
from kala.ethics.v1 import ethics_pb2 as pb
from kala.ethics.v1 import ethics_pb2_grpc
from services.common.clearance import ClearanceSigner
from services.common.keys import key_id, raw_public_key
from services.common.peers import GATEWAY, LOCAL_PREFIX, TOOLS, TRAINER, Context, Peer, peer_of
from services.common.sealing import action_digest, unpack_strictly
from services.ethics.action_text import Piece, Text, pieces_of
from services.ethics.archive import Archive
from services.ethics.bench import Bench
from services.ethics.judgement import Judgement
from services.ethics.measuring import Measuring
from services.ethics.output_check import Channel, Progress
from services.ethics.output_stream import OutputStream
from services.ethics.replay import judges_of, left_out
from services.ethics.wire import (
    CHANNEL_NUMBERS,
    CHANNELS,
    STAGES,
    Made,
    category_scores,
    decision_of,
    differences,
    law_scores,
    recorded_of,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_TEXT_CHARS: Final = 1_048_576
MAX_ACTION_BYTES: Final = 36 * 1024 * 1024
# The longest prompt of the contracts, twice: user turns are also read joined, arguments also with escapes read.
MAX_ACTION_CHARS: Final = 8 * 1_048_576
MAX_CHANNEL_INDEX: Final = 127
TOOLS_AUDIENCE: Final = "/kala.tools.v1."
# The one clearance that its asker does not present: a prompt that GenerateCode carries to the tools service.
_CARRIED: Final = (GATEWAY, TOOLS, "/kala.inference.v1.InferenceService/Chat")


@dataclass(frozen=True, slots=True)
class InForce:
    """The constitution that is in force, and when its files were last found to be what was signed."""

    verified: VerifiedConstitution
    verified_at: Callable[[], float]


class EthicsServicer(ethics_pb2_grpc.EthicsServiceServicer):
    """Transport around the bench; `audiences` are the guarded RPCs with the actions they carry."""

    def __init__(
        self,
        bench: Bench,
        *,
        in_force: InForce,
        signer: ClearanceSigner,
        measuring: Measuring,
        audiences: Mapping[str, str],
        next_key: Ed25519PublicKey | None = None,
        archive: Archive | None = None,
        now_nanos: Callable[[], int] = time.time_ns,
        steady_nanos: Callable[[], int] = time.perf_counter_ns,
        random_hex: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._bench = bench
        self._in_force = in_force
        self._signer = signer
        self._measuring = measuring
        self._audiences = dict(audiences)
        self._next_key = next_key
        self._archive = archive
        self._now_nanos = now_nanos
        self._steady_nanos = steady_nanos
        self._random_hex = random_hex

    async def CheckAction(self, request: pb.CheckActionRequest, context: Context) -> pb.CheckActionResponse:
        """Judge an action; on ALLOW sign that the asking peer may have these bytes run once."""
        began = self._steady_nanos()
        peer = peer_of(context)
        self._require_complete(request, peer)
        action = unpack_strictly(request.action, self._class_of(request.audience))
        judgement = await self._bench.judge(
            _bounded(pieces_of(action)), is_strict=request.after_untrusted_content
        )
        decision = self._decision(judgement, began, digest=action_digest(request.action))
        if not judgement.allows:
            return pb.CheckActionResponse(decision=decision)
        clearance = self._signer.mint(
            decision_id=decision.id,
            audience=request.audience,
            action=request.action,
            constitution_digest=self._bench.constitution.digest,
            presenter=_presenter(request, peer),
            principal=request.principal,
            purpose=request.purpose,
        )
        return pb.CheckActionResponse(decision=decision, clearance=clearance)

    async def CheckOutput(
        self, request_iterator: AsyncIterator[pb.CheckOutputRequest], _context: Context
    ) -> AsyncIterator[pb.CheckOutputResponse]:
        """Say how far each channel is checked, and at last whether all of it was fit to be released."""
        began = self._steady_nanos()
        start = _started(await anext(aiter(request_iterator), None))
        stream = self._bench.open_stream(start.request_text)
        checked = _Checked(stream)
        async for request in request_iterator:
            match request.WhichOneof("event"):
                case "chunk":
                    further = await checked.take(request.chunk)
                case "flush":
                    further = await checked.flush(request.flush.chunks)
                case "finish":
                    further = await checked.finish(request.finish.chunks)
                    yield pb.CheckOutputResponse(
                        checked=further, decision=self._output_decision(stream, began)
                    )
                    return
                case _:
                    raise InvalidArgumentError(
                        "event", "must be a chunk, a flush or the finish after the start"
                    )
            if stream.is_over:
                yield pb.CheckOutputResponse(decision=self._output_decision(stream, began))
                return
            if further or request.HasField("flush"):
                yield pb.CheckOutputResponse(checked=further)
        raise InvalidArgumentError("event", "the stream ended without a finish")

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Judge a text; nothing follows from it."""
        self._require_measurable(request, context)
        began, began_at = self._steady_nanos(), Timestamp()
        began_at.FromNanoseconds(self._now_nanos())
        text = replace(_text_of(request.text, request.stage), context=request.request_text)
        judgement = await self._bench.judge([text])
        decision = self._decision(judgement, began)
        if request.HasField("measurement"):
            measured = self._measuring.count(request, decision, began_at=began_at)
            return pb.ScoreResponse(decision=decision, measurement=measured)
        ratings = await self._bench.rate(text)
        laws = self._bench.constitution.laws
        return pb.ScoreResponse(
            decision=decision,
            laws=law_scores(judgement, ratings, laws),
            categories=category_scores(judgement, ratings, laws),
        )

    async def SumMeasurements(
        self, request: pb.SumMeasurementsRequest, _context: Context
    ) -> pb.SumMeasurementsResponse:
        """Add up measurements that were signed here."""
        return pb.SumMeasurementsResponse(sum=self._measuring.sum(request.parts))

    async def GetConstitution(
        self, _request: pb.GetConstitutionRequest, _context: Context
    ) -> pb.GetConstitutionResponse:
        """Say which constitution is in force and how its signature is trusted."""
        verified = self._in_force.verified
        response = pb.GetConstitutionResponse(
            version=verified.version,
            digest=verified.digest,
            trust=pb.TRUST_DEVELOPMENT if verified.development else pb.TRUST_PINNED,
            signer_key_ids=verified.key_ids,
            files=[
                pb.ConstitutionFile(path=path, sha256=promised.sha256, bytes=promised.size_bytes)
                for path, promised in sorted(verified.manifest.files.items())
            ],
            signature_threshold=verified.threshold,
            trusted_keys=verified.trusted_keys,
            previous_digest=verified.manifest.previous or b"",
            review_by=verified.manifest.review_by.isoformat() if verified.manifest.review_by else "",
        )
        response.verified_at.FromNanoseconds(int(self._in_force.verified_at() * 1e9))
        return response

    async def ListLaws(self, _request: pb.ListLawsRequest, _context: Context) -> pb.ListLawsResponse:
        """List the laws in their order."""
        laws = self._bench.constitution.laws
        return pb.ListLawsResponse(
            laws=[
                pb.Law(number=law.number, name=law.name, text=law.text, categories=law.categories)
                for law in laws
            ]
        )

    async def ListKeys(self, _request: pb.ListKeysRequest, _context: Context) -> pb.ListKeysResponse:
        """List the keys that sign clearances now and after the next rotation."""
        keys = [(self._signer.public_key, True)]
        if self._next_key is not None:
            keys.append((self._next_key, False))
        return pb.ListKeysResponse(
            keys=[
                pb.SigningKey(key_id=key_id(key), public_key=raw_public_key(key), current=current)
                for key, current in keys
            ]
        )

    async def ReplayDecision(
        self, request: pb.ReplayDecisionRequest, _context: Context
    ) -> pb.ReplayDecisionResponse:
        """Judge a recorded text again by the same version, and say where the result differs."""
        bench = await self._bench_of(request.constitution_digest)
        recorded = recorded_of(request.recorded, bench.constitution) if request.HasField("recorded") else None
        judges = judges_of(bench.seated, recorded)
        began = self._steady_nanos()
        judgement = await bench.judge([_text_of(request.text, request.stage)], judges)
        decision = self._decision(judgement, began, by=bench)
        if not request.HasField("recorded"):
            return pb.ReplayDecisionResponse(decision=decision)
        found = differences(request.recorded, decision)
        found += [f"judge {name}: not recorded as asked" for name in left_out(bench.seated, recorded)]
        return pb.ReplayDecisionResponse(decision=decision, reproduced=not found, differences=found)

    def _require_complete(self, request: pb.CheckActionRequest, peer: Peer) -> None:
        if request.audience not in self._audiences:
            raise InvalidArgumentError("audience", f"{request.audience!r} is no RPC that takes a clearance")
        if not request.principal.id or not request.principal.tenant:
            raise InvalidArgumentError("principal", "must name an id and a tenant")
        if len(request.action.value) > MAX_ACTION_BYTES:
            raise InvalidArgumentError("action", f"must be at most {MAX_ACTION_BYTES} bytes")
        if request.purpose not in _PURPOSES.get(peer.part, ()):
            # A value that this version does not know has no name.
            named = clearance_pb2.Purpose.DESCRIPTOR.values_by_number.get(request.purpose)
            purpose = named.name if named else f"purpose {request.purpose}"
            raise PermissionDeniedError(f"{peer.name} may not ask for clearances for {purpose}")
        if peer.part == TRAINER and not request.audience.startswith(TOOLS_AUDIENCE):
            raise PermissionDeniedError(f"{peer.name} may ask for clearances for tools only")
        if request.presenter and (peer.part, request.presenter, request.audience) != _CARRIED:
            raise PermissionDeniedError(
                f"{peer.name} may not ask for a clearance that somebody else presents"
            )

    def _require_measurable(self, request: pb.ScoreRequest, context: Context) -> None:
        if not request.HasField("measurement"):
            if request.slice:
                raise InvalidArgumentError("slice", "is for a measurement only")
            return
        if peer_of(context).part != TRAINER:
            raise PermissionDeniedError(
                "measurement: is for the trainer's evaluation only", reason="NOT_TRAINER"
            )
        self._measuring.require(request)

    def _class_of(self, audience: str) -> type[Message]:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(self._audiences[audience])
        return message_factory.GetMessageClass(descriptor)

    async def _bench_of(self, digest: bytes) -> Bench:
        """The judges of the version with this digest: in force, or from the archive."""
        in_force = self._bench.constitution
        if digest == in_force.digest:
            return self._bench
        if self._archive is not None:
            return await self._archive.bench(digest)
        raise FailedPreconditionError(
            f"constitution {digest.hex()[:16] or 'of no digest'} is not at hand;"
            f" in force is {in_force.digest.hex()[:16]} (version {in_force.version})"
        )

    def _output_decision(self, stream: OutputStream, began: int) -> decision_pb2.Decision:
        return self._decision(self._bench.conclude(stream), began)

    def _decision(
        self, judgement: Judgement, began: int, digest: bytes = b"", by: Bench | None = None
    ) -> decision_pb2.Decision:
        made = Made(self._random_hex(), self._now_nanos(), self._steady_nanos() - began, digest)
        return decision_of(judgement, (by or self._bench).constitution, made)


_PURPOSES: Final[Mapping[str, tuple[int, ...]]] = {
    GATEWAY: (clearance_pb2.PURPOSE_REQUEST,),
    TRAINER: (clearance_pb2.PURPOSE_TRAINING,),
}
"""Who may ask for clearances, and for what."""


class _Checked:
    """Turns progress into responses, and says nothing twice."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        self._told: dict[tuple[int, int], int] = {}

    async def take(self, chunk: pb.OutputChunk) -> list[pb.CheckedUpTo]:
        """Check a chunk; a refusal is told as the decision, not here."""
        progress = await self._stream.feed(_channel_of(chunk), chunk.index, chunk.text)
        return [] if self._stream.is_over else self._tell(chunk.channel, chunk.index, progress)

    async def flush(self, chunks: Iterable[pb.OutputChunk]) -> list[pb.CheckedUpTo]:
        """Check the chunks and then what waits, and tell what passed, each channel once."""
        passed: dict[tuple[int, int], pb.CheckedUpTo] = {}
        for chunk in chunks:
            passed |= {(told.channel, told.index): told for told in await self.take(chunk)}
            if self._stream.is_over:
                return []
        waited = self._tell_all(await self._stream.flush())
        return list((passed | {(told.channel, told.index): told for told in waited}).values())

    async def finish(self, chunks: Iterable[pb.OutputChunk]) -> list[pb.CheckedUpTo]:
        """Check the last chunks with the ends; nothing is told when one of them is refused."""
        last = [(_channel_of(chunk), chunk.index, chunk.text) for chunk in chunks]
        self._told.clear()
        return self._tell_all(await self._stream.finish(last))

    def _tell_all(self, further: Iterable[tuple[Channel, int, Progress]]) -> list[pb.CheckedUpTo]:
        return [
            told
            for channel, index, progress in further
            for told in self._tell(CHANNEL_NUMBERS[channel], index, progress)
        ]

    def _tell(
        self, channel: pb.OutputChannel.ValueType, index: int, progress: Progress
    ) -> list[pb.CheckedUpTo]:
        if progress.released_chars <= self._told.get((channel, index), 0):
            return []
        self._told[channel, index] = progress.released_chars
        return [pb.CheckedUpTo(channel=channel, index=index, characters=progress.released_chars)]


def _channel_of(chunk: pb.OutputChunk) -> Channel:
    channel = CHANNELS.get(chunk.channel)
    if channel is None:
        raise InvalidArgumentError("chunk.channel", "must be set")
    if chunk.index > MAX_CHANNEL_INDEX:
        raise InvalidArgumentError("chunk.index", f"must be 0 to {MAX_CHANNEL_INDEX}")
    if len(chunk.text) > MAX_TEXT_CHARS:
        raise InvalidArgumentError("chunk.text", f"must be at most {MAX_TEXT_CHARS} characters")
    return channel


def _presenter(request: pb.CheckActionRequest, peer: Peer) -> str:
    """Name who may present the clearance, as the actor will see them: over the same kind of connection."""
    if not request.presenter:
        return peer.name
    return f"{LOCAL_PREFIX}{request.presenter}" if peer.is_local else request.presenter


def _started(request: pb.CheckOutputRequest | None) -> pb.OutputStart:
    if request is None or request.WhichOneof("event") != "start":
        raise InvalidArgumentError("event", "the stream must begin with a start")
    if not request.start.decision_id:
        raise InvalidArgumentError("start.decision_id", "must name the decision that allowed the action")
    return request.start


def _bounded(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces, as long as their texts together are of a length that can be judged in seconds."""
    found = list(pieces)
    if sum(len(piece.text) for piece in found if isinstance(piece, Text)) > MAX_ACTION_CHARS:
        raise InvalidArgumentError("action", f"must hold at most {MAX_ACTION_CHARS} characters of text")
    return found


def _text_of(text: str, stage: pb.Stage.ValueType) -> Text:
    if not 0 < len(text) <= MAX_TEXT_CHARS:
        raise InvalidArgumentError("text", f"must have 1 to {MAX_TEXT_CHARS} characters")
    if stage not in STAGES:
        raise InvalidArgumentError("stage", "is unknown")
    return Text("text", STAGES[stage], text)
