"""The engine for secrets; it reads every text, and what it reports never holds what it found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from services.tools.code.engines.secrets.shapes import PRIVATE_KEY, SHAPES, SIGNED_TOKEN, is_signed_token
from services.tools.code.engines.secrets.texts import (
    is_password_name,
    is_placeholder,
    is_secret_name,
    looks_like_password,
    looks_random,
)
from services.tools.code.model import CodeLanguage, EngineName, EngineResult, Hit, Region, Rule, Source
from services.tools.code.rules import load

# Raised with every change of what is found.
_VERSION: Final = "kala.secrets 1"
_PREFIX: Final = "kala.secrets"
_MAX_HITS: Final = 1_000
_MAX_NAME: Final = 64
_MIN_KEY_BODY: Final = 60

_URL: Final = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,24}://[^:/\s@\"'`{}<>$]{1,64}:([^@/\s\"'`]{1,128})@[\w.-]{1,253}"
)
_PARTS_STRING: Final = re.compile(
    r"(?i)\b(?:server|data source|host|user id|uid|username)=[^;\"'\n]{1,128};[^\"'\n]{0,256}?\b(?:password|pwd)=([^;\"'\n]{1,128})"
)
# A text that something is set to; what stands before is looked at afterwards, so that this stays linear.
_QUOTED: Final = re.compile(r"(?:[^=!<>]=|:|=>|\(\s?|,\s?)\s{0,4}[bru]{0,2}([\"'`])([^\"'`\n]{6,256})\1")
_BARE: Final = re.compile(
    r"(?m)^[ \t]{0,40}(?:export |declare -x |readonly )?([A-Za-z_][\w.-]{0,63})[ \t]{0,4}[=:] ?([^\s\"'`#$;&|()]{6,256})[ \t]{0,4}$"
)
_NAME_BEFORE: Final = re.compile(r"([A-Za-z_$][\w$.-]*)[\"'`]?\]?\s*(?::\s*[\w\[\]|. ]{1,24}\s*)?$")
_SET_BY_CALL: Final = re.compile(
    r"(?:set|put|append|header|Header|setItem|setHeader|__setitem__)\(\s*[\"'`]([\w-]{1,64})[\"'`]$"
)


class SecretsEngine:
    """Looks for secrets in any text."""

    name: EngineName = EngineName.SECRETS
    version: str = _VERSION

    def __init__(self) -> None:
        self._rules = load("secrets.yaml", _PREFIX)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(self._rules.values())

    def reads(self, language: CodeLanguage) -> bool:  # noqa: ARG002 - every one
        return True

    def scan(self, source: Source) -> EngineResult:
        hits: list[Hit] = []
        taken: set[int] = set()
        for name, start, end, owner in islice(_secrets(source), _MAX_HITS + 1):
            line, column = source.lines.place(start)
            if line in taken:
                # The most exact rule comes first; a line is one secret to replace.
                continue
            taken.add(line)
            region = Region(line, column, *source.lines.place(end))
            detail = f"By its form it is a key of {owner}." if owner else ""
            hits.append(Hit(self._rules[f"{_PREFIX}.{name}"], region, detail=detail))
        if len(hits) > _MAX_HITS:
            return EngineResult(
                tuple(hits[:_MAX_HITS]), (f"more than {_MAX_HITS} secrets; the rest is left out",)
            )
        return EngineResult(tuple(hits))


def _secrets(source: Source) -> Iterator[tuple[str, int, int, str]]:
    """Rule, start, end, and whose key it is where that is known; the most exact rules first."""
    text = source.text
    for match in PRIVATE_KEY.finditer(text):
        body = re.sub(r"\\n|\s|[\"'+\\]", "", match[1])
        if len(re.findall(r"[A-Za-z0-9/]", body)) >= _MIN_KEY_BODY and len(set(body)) > 16:
            yield "private_key", match.start(), match.start(1), ""
    for shape in SHAPES:
        if shape.mark in text:
            for match in shape.pattern.finditer(text):
                # Providers' manuals write their sample keys so; a real key's random letters spell none of these.
                if shape.holds(match[0]) and not re.search("EXAMPLE|example|xxxx|XXXX", match[0]):
                    yield "provider_key", *match.span(), shape.owner
    if "eyJ" in text:
        for match in SIGNED_TOKEN.finditer(text):
            if is_signed_token(match[0]):
                yield "signed_token", *match.span(), ""
    for pattern in (_URL, _PARTS_STRING):
        for match in pattern.finditer(text):
            if not (
                is_placeholder(match[1]) or re.search(r"@[\w.-]*example\b", match[0]) or match[1][0] in "$%{"
            ):
                yield "connection_password", *match.span(1), ""
    yield from _assigned(source)


def _assigned(source: Source) -> Iterator[tuple[str, int, int, str]]:
    text = source.text
    for match in _QUOTED.finditer(text):
        before = text[max(0, match.start() - _MAX_NAME) : match.start() + 1].rstrip("=:>,( \t")
        named = _SET_BY_CALL.search(before) or (None if match[0][0] in "(," else _NAME_BEFORE.search(before))
        if match[1] == "`" and source.language is not CodeLanguage.JAVASCRIPT:
            continue
        if named is not None and (rule := _rule_for(named[1].rstrip("."), match[2])):
            yield rule, *match.span(2), ""
    if source.language in {CodeLanguage.SHELL, CodeLanguage.OTHER}:
        for match in _BARE.finditer(text):
            if rule := _rule_for(match[1], match[2]):
                yield rule, *match.span(2), ""


def _rule_for(name: str, text: str) -> str:
    if is_placeholder(text):
        return ""
    if is_secret_name(name) and looks_random(text):
        return "random_secret"
    if is_password_name(name) and (looks_random(text) or looks_like_password(text)):
        return "password"
    return ""
