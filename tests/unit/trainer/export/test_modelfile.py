"""Ollama's template says what the Jinja template says, or nothing."""

from __future__ import annotations

from services.trainer.export.modelfile import go_template, modelfile


def chain(messages, opens: bool) -> str:
    text = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
    return text + ("<|assistant|>" if opens else "")


def first_is_special(messages, opens: bool) -> str:
    return "[FIRST]" + chain(messages, opens)


def drops_the_system(messages, opens: bool) -> str:
    return chain([message for message in messages if message["role"] != "system"], opens)


def test_a_template_that_joins_messages_is_translated() -> None:
    template = go_template(chain)
    assert template.startswith(
        '{{ range .Messages }}{{ if eq .Role "system" }}<|system|>{{ .Content }}<|end|>'
    )
    assert template.endswith("{{ end }}{{ end }}<|assistant|>")


def test_a_template_with_rules_of_its_own_is_not_guessed() -> None:
    assert go_template(first_is_special) == ""
    assert go_template(drops_the_system) == ""
    text = modelfile("m.gguf", render=first_is_special, stop="", context_tokens=64, facts=[])
    assert "TEMPLATE" not in text
    assert "FROM ./m.gguf" in text


def test_the_file_names_model_stop_and_context() -> None:
    text = modelfile("m.gguf", render=chain, stop="<|end|>", context_tokens=64, facts=["from here"])
    assert text.splitlines()[:2] == ["# from here", "FROM ./m.gguf"]
    assert 'PARAMETER stop "<|end|>"' in text
    assert "PARAMETER num_ctx 64" in text
