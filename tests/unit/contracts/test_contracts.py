"""The contracts hold to their own rules: read from the generated descriptors, so that what is served is what is checked."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor

from kala.common.v1 import options_pb2

ROOT = Path(__file__).resolve().parents[3]
PROTOS = ROOT / "protos"
SERVICES = ("audit", "common", "ethics", "gateway", "inference", "tools", "trainer")
SEALED_ACTION = "kala.common.v1.SealedAction"
# Design section 4: everything that generates, loads, runs, writes or trains, and nothing else.
GUARDED = {
    "kala.inference.v1.InferenceService": {
        "Chat", "Complete", "Embed", "Rerank", "LoadModel", "LoadAdapter",
    },
    "kala.tools.v1.ToolsService": {"Execute", "WriteFile", "RepairCode", "GenerateCode"},
    "kala.trainer.v1.TrainerService": {"CreateTrainingJob", "BuildDataset", "EvaluateAdapter", "PromoteAdapter"},
}  # fmt: skip
# Design section 5: what each service must offer at least.
OFFERED = {
    "kala.ethics.v1.EthicsService": "CheckAction CheckOutput Score GetConstitution ListLaws ListKeys ReplayDecision",
    "kala.inference.v1.InferenceService": (
        "Chat Complete Embed Rerank CountTokens ListModels GetBackend ListBackends CheckBackend LoadModel UnloadModel "
        "PullModel LoadAdapter UnloadAdapter ExplainRoute"
    ),
    "kala.tools.v1.ToolsService": (
        "ListTools Execute CreateWorkspace DeleteWorkspace ReadFile WriteFile DeleteFile ListFiles GetArtifact ListRuns "
        "GetPolicy SelfTest ListApprovals DecideApproval HintVulnerabilities GenerateCode ValidateCode RepairCode"
    ),
    "kala.audit.v1.AuditService": "Append AppendBatch AppendStream",
    "kala.audit.v1.AuditReadService": (
        "GetEntry ReadPayload GetReceipt GetCheckpoint GetConsistencyProof Query Export ListGaps Summary PipelineStatus "
        "WatchEntries WatchCheckpoints"
    ),
    "kala.audit.v1.AuditPrivacyService": "EraseSubject PlaceHold ReleaseHold",
    "kala.trainer.v1.TrainerService": (
        "PlanJob CreateTrainingJob GetTrainingJob ListTrainingJobs CancelTrainingJob WatchTrainingJob WatchLogs "
        "BuildDataset CheckDataset EvaluateAdapter PromoteAdapter RevokeAdapter ExportAdapter GetAdapter ListAdapters"
    ),
}


def proto_paths() -> list[str]:
    return sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "kala").rglob("*.proto"))


def load(path: str) -> FileDescriptor:
    module = importlib.import_module(path.removesuffix(".proto").replace("/", ".") + "_pb2")
    descriptor: FileDescriptor = module.DESCRIPTOR
    return descriptor


FILES = [load(path) for path in proto_paths()]
METHODS = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)


def guard_of(method: MethodDescriptor) -> str | None:
    options = method.GetOptions()
    return options.Extensions[options_pb2.guard].action if options.HasExtension(options_pb2.guard) else None


def http_of(method: MethodDescriptor) -> tuple[str, str, str]:
    """Verb, path and body."""
    rule: http_pb2.HttpRule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern") or ""
    return verb, getattr(rule, verb) if verb else "", rule.body


def service_folder(method: MethodDescriptor) -> str:
    return str(method.full_name.split(".")[1])


def reachable(message: Descriptor) -> Iterator[FieldDescriptor]:
    """Every field of a message, at any depth, each message once."""
    seen: set[str] = set()
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if current.full_name in seen:
            continue
        seen.add(current.full_name)
        for field in current.fields:
            yield field
            if field.message_type is not None:
                waiting.append(field.message_type)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


@pytest.mark.parametrize("path", proto_paths())
def test_every_contract_has_generated_code_at_its_own_path(path: str):
    stem = ROOT / path.removesuffix(".proto")
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
        assert stem.with_name(stem.name + suffix).is_file(), f"run make proto: {stem.name}{suffix} is missing"
    assert load(path).package == str(Path(path).parent).replace("/", ".")


def test_no_generated_code_outlives_its_contract():
    generated = {
        str(path.relative_to(ROOT)).removesuffix("_pb2.py") + ".proto"
        for path in (ROOT / "kala").rglob("*_pb2.py")
    }
    assert generated == set(proto_paths())


def test_all_services_have_a_contract():
    assert {Path(path).parts[1] for path in proto_paths()} == set(SERVICES)


@methods
def test_every_rpc_says_which_scope_may_call_it(method: MethodDescriptor):
    scope = method.GetOptions().Extensions[options_pb2.scope]
    assert scope != options_pb2.SCOPE_UNSPECIFIED


@methods
def test_every_rpc_has_a_path_under_its_service(method: MethodDescriptor):
    verb, path, body = http_of(method)
    assert verb in {"get", "post", "put", "patch", "delete"}
    assert path.startswith(f"/kala/v1/{service_folder(method)}/")
    assert body == ("*" if verb in {"post", "put", "patch"} else "")


@methods
def test_every_path_variable_is_a_field_of_the_request(method: MethodDescriptor):
    fields = {field.name for field in method.input_type.fields}
    assert set(re.findall(r"\{([a-z_]+)[=}]", http_of(method)[1])) <= fields


def test_no_two_rpcs_share_a_path():
    # Variables of one shape are the same path to a router.
    shapes = Counter(
        (verb, re.sub(r"\{[a-z_]+=([^}]*)\}", r"\1", path)) for verb, path, _ in map(http_of, METHODS)
    )
    assert [shape for shape, count in shapes.items() if count > 1] == []


def test_exactly_the_acting_rpcs_are_guarded():
    guarded: dict[str, set[str]] = {}
    for method in METHODS:
        if guard_of(method) is not None:
            guarded.setdefault(method.containing_service.full_name, set()).add(method.name)
    assert guarded == GUARDED


@methods
def test_a_guard_and_a_sealed_action_go_together(method: MethodDescriptor):
    kinds = [field.message_type.full_name if field.message_type else "" for field in method.input_type.fields]
    if guard_of(method) is None:
        assert SEALED_ACTION not in kinds
    else:
        assert kinds == [SEALED_ACTION]
        assert method.input_type.fields[0].name == "sealed"
        assert http_of(method)[0] == "post"


@methods
def test_a_guard_names_the_one_action_of_its_rpc(method: MethodDescriptor):
    action = guard_of(method)
    if action is None:
        return
    package = method.containing_service.file.package
    assert action == f"{package}.{method.name}Action"
    assert descriptor_pool.Default().FindMessageTypeByName(action).file.package == package


@methods
def test_an_action_holds_no_maps_so_that_its_bytes_have_one_order(method: MethodDescriptor):
    action = guard_of(method)
    if action is None:
        return
    message = descriptor_pool.Default().FindMessageTypeByName(action)
    assert [field.full_name for field in reachable(message) if is_map(field)] == []


def test_what_is_signed_and_kept_verbatim_holds_no_maps_either():
    pool = descriptor_pool.Default()
    for name in (
        "ClearanceClaims",
        "AdapterManifest",
        "AdapterDescription",
        "GateResult",
        "Measurement",
        "RevocationList",
    ):
        message = pool.FindMessageTypeByName(f"kala.common.v1.{name}")
        assert [field.full_name for field in reachable(message) if is_map(field)] == []


@pytest.mark.parametrize("service", OFFERED)
def test_a_service_offers_what_the_design_lists(service: str):
    offered = {method.name for method in METHODS if method.containing_service.full_name == service}
    assert set(OFFERED[service].split()) - offered == set()


def test_the_rpcs_between_services_are_never_bridged():
    internal = {
        method.name
        for method in METHODS
        if method.GetOptions().Extensions[options_pb2.scope] == options_pb2.SCOPE_INTERNAL
    }
    assert {"Append", "AppendBatch", "AppendStream", "CheckAction", "CheckOutput"} <= internal


@methods
def test_a_request_and_a_response_belong_to_one_rpc(method: MethodDescriptor):
    assert method.input_type.full_name == f"{method.containing_service.file.package}.{method.name}Request"
    response = method.output_type.full_name
    assert response in {
        f"{method.containing_service.file.package}.{method.name}Response",
        "google.longrunning.Operation",
    }


@methods
def test_lists_are_read_in_pages(method: MethodDescriptor):
    response = {field.name for field in method.output_type.fields}
    if "next_page_token" in response:
        assert {"page_size", "page_token"} <= {field.name for field in method.input_type.fields}
