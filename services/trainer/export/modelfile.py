"""Ollama's Modelfile for a GGUF: the chat template in Go's language, found by asking the Jinja one what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""Writes a conversation as the Jinja template does; the flag asks for the beginning of an answer."""

ROLES: Final = ("system", "user", "assistant")
_MARK: Final = "KALACONTENTMARK"


def modelfile(
    model_file: str, *, render: Render | None, stop: str, context_tokens: int, facts: Sequence[str]
) -> str:
    """The file's text; without a TEMPLATE where Go's language cannot say what the Jinja template does."""
    lines = [*(f"# {fact}" for fact in facts), f"FROM ./{model_file}"]
    template = "" if render is None else go_template(render)
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append(
            "# The chat template has no equal in Ollama's language; the one inside the GGUF file counts."
        )
    if stop:
        lines.append(f'PARAMETER stop "{stop}"')
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {context_tokens}"]
    return "\n".join(lines) + "\n"


def go_template(render: Render) -> str:
    """A Go template that writes every conversation as `render` does; empty when the two could differ."""
    pieces: dict[str, tuple[str, str]] = {}
    for role in ROLES:
        before, mark, after = render([{"role": role, "content": _MARK}], False).partition(_MARK)
        if not mark or "{{" in before + after or '"""' in before + after:
            return ""
        pieces[role] = (before, after)
    opening = (
        render([{"role": "user", "content": _MARK}], True).partition(_MARK)[2].removeprefix(pieces["user"][1])
    )
    if not _is_a_chain(render, pieces, opening):
        return ""
    cases = [
        f'{{{{ {"if" if index == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for index, (role, (before, after)) in enumerate(pieces.items())
    ]
    return "{{ range .Messages }}" + "".join(cases) + "{{ end }}{{ end }}" + opening


def _is_a_chain(render: Render, pieces: dict[str, tuple[str, str]], opening: str) -> bool:
    """Whether a conversation is its messages one after another, whatever their order, and then the opening."""
    turns = [
        ("system", "Be brief."),
        ("user", "One 1"),
        ("assistant", "Two"),
        ("user", "Three?"),
        ("user", "Four"),
    ]
    for count in range(1, len(turns) + 1):
        messages = [{"role": role, "content": text} for role, text in turns[:count]]
        plain = "".join(f"{pieces[role][0]}{text}{pieces[role][1]}" for role, text in turns[:count])
        if render(messages, False) != plain or render(messages, True) != plain + opening:
            return False
    return True
