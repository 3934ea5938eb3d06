"""`kala ethics check` and `kala ethics explain`: how the Five Laws judge one text, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import (
    ConstitutionOption,
    DevelopmentOption,
    JsonOption,
    KeyOption,
    StateOption,
    ThresholdOption,
    TrustedKeysOption,
    UrlOption,
    offline_of,
)
from kala.cli.output import console, show, show_json, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.text import Text

    from kala.ethics.lanes import Verdict

EXIT_NOT_ALLOWED: Final = 3
"""Nothing failed; the answer is any outcome but ALLOW."""

MAX_SHOWN_CHARS: Final = 120
"""A view or a quote in a table; `--json` has them longer."""

_CONTROL_PICTURES: Final = 0x2400
"""Unicode's pictures of the ASCII control characters, in their order."""

_REPLACEMENT: Final = "\ufffd"

TextArgument = Annotated[str, typer.Argument(help="The text to judge.")]
StageOption = Annotated[
    str, typer.Option(help="Whose words they are: request, output (of a model) or tool_result.")
]
RequestOption = Annotated[
    str | None,
    typer.Option("--request", help="For an output: the request that it answers.", show_default=False),
]


def check(
    text: TextArgument,
    *,
    stage: StageOption = "request",
    request: RequestOption = None,
    as_json: JsonOption = False,
    constitution: ConstitutionOption = None,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Say how the Five Laws judge a text, and what its author is told; exit code 0 when it is allowed, 3 when it is not.

    Judged on this machine, or with --url, --key or --state by a running suite.
    """
    from kala.cli.ethics_lanes import Elsewhere, judge_text

    offline = offline_of(constitution, trusted_key, threshold, development=development)
    verdict = judge_text(text, request, offline, Elsewhere(url, key, state), stage=stage)
    if as_json:
        show_json(verdict)
    else:
        show(_headline(verdict))
        for step in verdict["path"]:
            show(f"  {step}")
        if verdict["message"]:
            show(str(verdict["message"]))
    return _exit_code(verdict)


def explain(
    text: TextArgument,
    *,
    stage: StageOption = "request",
    request: RequestOption = None,
    as_json: JsonOption = False,
    constitution: ConstitutionOption = None,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Show how a text was read, who judged it, and what they saw where; exit codes as of `check`.

    Judged on this machine, or with --url, --key or --state by a running suite, which does not tell how it read the text.
    """
    from kala.cli.ethics_lanes import Elsewhere, judge_text

    offline = offline_of(constitution, trusted_key, threshold, development=development)
    verdict = judge_text(text, request, offline, Elsewhere(url, key, state), stage=stage)
    if as_json:
        show_json(verdict)
    else:
        _show_explanation(text, verdict)
    return _exit_code(verdict)


def _exit_code(verdict: Verdict) -> int:
    return 0 if verdict["outcome"] == "ALLOW" else EXIT_NOT_ALLOWED


def _headline(verdict: Verdict) -> str:
    law, category = verdict["law"], verdict["category"]
    if law is None:
        return str(verdict["outcome"]) + (f" ({category})" if category else "")
    return f"{verdict['outcome']} by Law {law} ({category})"


def _show_explanation(text: str, verdict: Verdict) -> None:
    screen = console()
    screen.print(f"{_headline(verdict)}, score {verdict['score']:.3f}", style="bold", markup=False)
    screen.print(f"judges: {', '.join(verdict['judges'])}; {verdict['elapsed_ms']:.1f} ms\n", markup=False)
    screen.print(_highlighted(text, verdict["evidence"]))
    table(
        "\nEvidence",
        ("judge", "law", "category", "outcome", "score", "view", "span", "text", "rule"),
        [_evidence_row(item, text) for item in verdict["evidence"]],
    )
    table(
        "Scores by law",
        ("law", "score", "category"),
        [(str(law["law"]), f"{law['score']:.3f}", law["category"]) for law in verdict["laws"]],
    )
    if verdict["views"]:
        rows = [(view["name"], _shown(view["text"])) for view in verdict["views"]]
        table("Read as", ("view", "text"), rows)
    for step in verdict["path"]:
        show(step)
    if verdict["message"]:
        show(f"\n{verdict['message']}")


def _highlighted(text: str, evidence: list[Mapping[str, Any]]) -> Text:  # Any: parsed JSON
    """The text itself with all that speaks against it marked; what a terminal would obey is spelled out."""
    from rich.text import Text

    shown = Text(_visible(text))
    for item in evidence:
        if item["outcome"] != "ALLOW" and item["field"].startswith("text"):
            shown.stylize("reverse bold", item["start"], item["end"])
    return shown


def _evidence_row(item: Mapping[str, Any], text: str) -> tuple[str, ...]:  # Any: parsed JSON
    quoted = text[item["start"] : item["end"]] if item["field"].startswith("text") else ""
    return (
        item["judge"],
        "" if item["law"] is None else str(item["law"]),
        item["category"],
        item["outcome"],
        f"{item['score']:.3f}",
        item["view"],
        f"{item['start']}-{item['end']}",
        _shown(quoted),
        item["rule"],
    )


def _shown(text: str) -> str:
    shortened = text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"
    return _visible(shortened.replace("\n", " "))


def _visible(text: str) -> str:
    """The same number of characters, none of which controls a terminal."""
    return "".join(_visible_char(char) for char in text)


def _visible_char(char: str) -> str:
    if char in "\n\t" or char.isprintable():
        return char
    return chr(_CONTROL_PICTURES + ord(char)) if char < " " else _REPLACEMENT
