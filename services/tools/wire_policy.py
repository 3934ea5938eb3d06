"""Between the contract's messages and this service's own words: policy, approvals, self-tests."""

from __future__ import annotations

from typing import Final

from kala.tools.v1 import policy_pb2 as pb
from services.tools import wire
from services.tools.policy.approvals import Approval, ApprovalState
from services.tools.policy.model import Approver, CommandRule, Policy, Risk, Zone
from services.tools.sandbox.detection import MechanismReport
from services.tools.toolbox.model import ToolDefinition

RISKS: Final = {risk: pb.Risk.Value(f"RISK_{risk.name}") for risk in Risk}
APPROVERS: Final = {approver: pb.Approver.Value(f"APPROVER_{approver.name}") for approver in Approver}
STATES: Final = {state: pb.ApprovalState.Value(f"APPROVAL_STATE_{state.name}") for state in ApprovalState}


def state_of(number: int) -> ApprovalState | None:
    """Read a state; None for UNSPECIFIED."""
    return next((state for state, value in STATES.items() if value == number), None)


def tool(found: ToolDefinition, unavailable_reason: str) -> pb.Tool:
    """Write a tool as it is offered."""
    return pb.Tool(
        name=found.name,
        description=found.description,
        parameters_schema=found.parameters_schema,
        result_schema=found.result_schema,
        risk=RISKS[found.risk],
        available=not unavailable_reason,
        unavailable_reason=unavailable_reason,
    )


def policy(found: Policy) -> pb.Policy:
    """Write the rules in force."""
    rule = found.approvals
    return pb.Policy(
        version=found.version,
        digest=found.digest,
        tools=sorted(found.tools),
        commands=[_command(each) for each in found.commands],
        zones=[_zone(each) for each in found.zones],
        approvals=pb.ApprovalRule(
            from_risk=pb.RISK_UNSPECIFIED if rule.from_risk is None else RISKS[rule.from_risk],
            from_risk_after_untrusted=pb.RISK_UNSPECIFIED
            if rule.from_risk_after_untrusted is None
            else RISKS[rule.from_risk_after_untrusted],
            approver=APPROVERS[rule.approver],
            waits=wire.duration(rule.wait_seconds),
        ),
        default_limits=wire.limits(found.default_limits),
        max_limits=wire.limits(found.max_limits),
        least_strength=wire.STRENGTHS[found.least_strength],
        allow_weak=found.allow_weak,
        default_workspace_bytes=found.default_workspace_bytes,
        max_workspace_bytes=found.max_workspace_bytes,
        default_workspace_ttl=wire.duration(found.default_workspace_seconds),
        max_workspace_ttl=wire.duration(found.max_workspace_seconds),
        allow_host_directory=found.allow_host_directory,
    )


def approval(found: Approval) -> pb.Approval:
    """Write an approval."""
    call = found.call
    return pb.Approval(
        name=found.name,
        state=STATES[found.state],
        tenant=call.owner.tenant,
        owner=call.owner.principal,
        tool=call.tool,
        arguments_json=call.arguments_json,
        workspace=call.workspace,
        risk=RISKS[call.risk],
        reason=call.reason,
        call_digest=call.call_digest,
        approver=APPROVERS[found.approver],
        decided_by=found.decided_by,
        comment=found.comment,
        created_at=wire.timestamp(found.created_at),
        expires_at=wire.timestamp(found.expires_at),
        decided_at=None if found.decided_at is None else wire.timestamp(found.decided_at),
        stdin=call.stdin,
        stdin_bytes=call.stdin_bytes,
        files=wire.references(call.files),
    )


def mechanism(found: MechanismReport) -> pb.MechanismReport:
    """Write how one tier did."""
    return pb.MechanismReport(
        tier=wire.TIERS[found.tier],
        strength=wire.STRENGTHS[found.strength],
        usable=found.usable,
        selected=found.selected,
        reason=found.reason,
        version=found.version,
        cases=[
            pb.ProbeCase(id=case.id, description=case.description, held=case.held, detail=case.detail)
            for case in found.cases
        ],
        start_time=None if found.start_seconds is None else wire.duration(found.start_seconds),
    )


def _command(found: CommandRule) -> pb.CommandRule:
    return pb.CommandRule(
        program=found.program,
        refused_arguments=found.refused_arguments,
        risk=RISKS[found.risk],
        max_arguments=found.max_arguments or 0,
        redirections=found.redirections,
    )


def _zone(found: Zone) -> pb.Zone:
    return pb.Zone(path=found.path, read=found.read, write=found.write, delete=found.delete)
