"""Translates between the contract and hints for a task."""

from __future__ import annotations

from typing import Final

from kala.errors import InvalidArgumentError
from kala.tools.v1 import code_pb2, execution_pb2
from kala.tools.v1 import tools_pb2 as pb
from services.tools.code.hints import Hints, prompt_text
from services.tools.code.model import CodeLanguage

_LANGUAGES: Final = {
    execution_pb2.LANGUAGE_UNSPECIFIED: None,
    execution_pb2.LANGUAGE_PYTHON: CodeLanguage.PYTHON,
    execution_pb2.LANGUAGE_JAVASCRIPT: CodeLanguage.JAVASCRIPT,
    execution_pb2.LANGUAGE_SHELL: CodeLanguage.SHELL,
}


def hints(known: Hints, request: pb.HintVulnerabilitiesRequest) -> pb.HintVulnerabilitiesResponse:
    """Answer one task; raises InvalidArgumentError for what is out of limits."""
    if request.language not in _LANGUAGES:
        raise InvalidArgumentError("language", "is none that is known; leave it unset when it is open")
    found = known.hints_for(
        request.task,
        language=_LANGUAGES[request.language],
        frameworks=request.frameworks,
        max_hints=request.max_hints,
    )
    return pb.HintVulnerabilitiesResponse(
        hints=[
            code_pb2.VulnerabilityHint(
                title=each.title,
                cwe=each.cwe,
                owasp=each.owasp,
                why=each.why,
                advice=each.advice,
                relevance=each.relevance,
            )
            for each in found
        ],
        prompt_text=prompt_text(found),
    )
