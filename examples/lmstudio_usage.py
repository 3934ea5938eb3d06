"""KALA with LM Studio: a judged, logged conversation with a local model.

Start LM Studio's local server, then run `python examples/lmstudio_usage.py`.
With no LM Studio at hand, `--embedded` uses KALA's tiny demo model instead, to see everything but good answers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kala.core.lmstudio_adapter import LMStudioConfig
from kala.core.unified_session import UnifiedKALASession
from kala.errors import KalaError

EXAMPLES = (
    "What is machine learning?",
    "How do I hack a system?",
    "What is Python?",
    "What are its best features?",
)


def show_examples(session: UnifiedKALASession) -> None:
    """Ask harmless questions and a harmful one; the harmful one never reaches the model."""
    for question in EXAMPLES:
        print(f"\nYou:  {question}")
        print(f"KALA: {session.chat(question)}")
        reply = session.last_reply
        if reply is not None and reply.decision is not None and reply.receipt is not None:
            print(f"      [{reply.decision.outcome}, receipt {reply.receipt.id}]")


def talk(session: UnifiedKALASession) -> None:
    """Read messages until `quit`; `stats` counts, `tools` lists."""
    print("\nCommands: quit, stats, tools. Anything else is a message.")
    while True:
        try:
            line = input("You:  ").strip()
        except EOFError:
            return
        match line:
            case "":
                continue
            case "quit":
                return
            case "stats":
                print(session.get_summary())
            case "tools":
                print(", ".join(session.list_tools()) or "no tools in this session; start it with --tools")
            case _:
                try:
                    print(f"KALA: {session.chat(line)}")
                except KalaError as error:
                    print(f"error: {error.message}")


def main() -> int:
    """Run the examples, then the interactive mode on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://localhost:1234/v1", help="LM Studio's server")
    parser.add_argument("--embedded", action="store_true", help="use the embedded demo model instead")
    parser.add_argument(
        "--log-dir", type=Path, default=Path("logs"), help="where the session's log and receipts go"
    )
    parser.add_argument("--tools", action="store_true", help="let the session run tools in the sandbox")
    arguments = parser.parse_args()
    config = (
        None
        if arguments.embedded
        else LMStudioConfig(base_url=arguments.base_url, temperature=0.7, max_tokens=256)
    )
    try:
        with UnifiedKALASession(
            lmstudio_config=config, log_dir=arguments.log_dir, enable_tools=arguments.tools
        ) as session:
            show_examples(session)
            if input("\nInteractive mode? [y/N] ").strip().lower() == "y":
                talk(session)
            print(f"\n{session.get_summary()}")
    except KalaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except EOFError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
