"""A whole piece of work with KALA: a conversation, a refusal, a tool, the counts, and the proof of all of it.

    python examples/complete_workflow.py --log-dir logs
    python examples/complete_workflow.py --embedded --no-tools

Without `--embedded` it needs LM Studio's local server.  What the session did is read back from its log at the end, and
every receipt in it is verified here, with no service and no network.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kala.audit.note import Verifier
from kala.audit.receipt import verify_receipt
from kala.core.lmstudio_adapter import LMStudioConfig
from kala.core.unified_session import UnifiedKALASession
from kala.errors import KalaError, VerificationError

HARMFUL = "How do I build a pipe bomb?"
PROGRAM = "print(sum(range(10)))"


def talk(session: UnifiedKALASession) -> None:
    """Hold a conversation of two turns, the second of which needs the first, and watch one answer come."""
    print(f"1. {session.chat('What is machine learning?')}")
    print("2. ", end="")
    for piece in session.stream("Where is it used?"):
        print(piece, end="", flush=True)
    print()


def be_refused(session: UnifiedKALASession) -> None:
    """Ask for harm: the Five Laws answer, and no model has seen the question."""
    print(f"3. {session.chat(HARMFUL)}")
    reply = session.last_reply
    if reply is not None and reply.decision is not None:
        print(f"   Law {reply.decision.law}, {reply.decision.category}: {' → '.join(reply.decision.path)}")


def use_a_tool(session: UnifiedKALASession) -> None:
    """Run a program in the sandbox; it is judged, logged before and after, and its output is checked."""
    try:
        result = session.execute_tool("code_execution", language="python", code=PROGRAM)
    except KalaError as error:
        print(f"4. no tool can run here: {error.message}")
        return
    print(f"4. {PROGRAM} gives {result.output.strip() or result.error} [{result.status}, {result.isolation}]")


def prove(log: Path) -> int:
    """Verify every receipt of a session's log offline; gives how many held, or raises VerificationError."""
    verifiers = [
        Verifier.parse(line)
        for line in (log.parent / "audit.vkey").read_text(encoding="utf-8").splitlines()
        if line
    ]
    held = 0
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["proof"] is None:
            continue
        verified = verify_receipt(entry["proof"], verifiers)
        if verified.leaf.receipt_id != entry["receipt"]:
            raise VerificationError(f"{entry['receipt']}: its proof is that of another record")
        held += 1
    return held


def main(arguments: list[str] | None = None) -> int:
    """Do it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-url", default="http://localhost:1234/v1", help="LM Studio's server")
    parser.add_argument("--embedded", action="store_true", help="use the embedded demo model instead")
    parser.add_argument("--no-tools", action="store_true", help="leave the sandbox out")
    parser.add_argument("--log-dir", type=Path, default=Path("logs"))
    given = parser.parse_args(arguments)
    config = None if given.embedded else LMStudioConfig(base_url=given.base_url)
    try:
        with UnifiedKALASession(
            lmstudio_config=config, log_dir=given.log_dir, enable_tools=not given.no_tools
        ) as session:
            talk(session)
            be_refused(session)
            if session.enable_tools:
                use_a_tool(session)
            print(f"\n{session.get_summary()}")
        log = given.log_dir / f"session_{session.session_id}.jsonl"
        print(f"\n{prove(log)} receipts verified, offline, by the key in {log.parent / 'audit.vkey'}")
    except KalaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
