"""The card of a dataset: what is in it, where it comes from, under which licence, and what was dropped."""

from __future__ import annotations

from typing import Final

from kala.trainer.v1.dataset_pb2 import (
    DatasetReport,
    DatasetSource,
    DatasetSpec,
    GeneratorCategory,
    SourceFormat,
)

MAX_CARD_BYTES: Final = 64 * 1024
_MAX_PROBLEMS: Final = 50


def card_of(name: str, spec: DatasetSpec, report: DatasetReport, *, similarity: float, words: int) -> str:
    """Returns the card in Markdown, at most 64 KiB: what does not fit is named as left out."""
    parts = [
        f"# {name}\n",
        spec.summary.strip() or "No summary was given.",
        "\n" + _how(spec),
        _counts(report),
        _sources(spec, report),
        _categories(report),
        _cleaning(spec, report, similarity, words),
        _problems(report),
    ]
    text = "\n".join(part for part in parts if part).rstrip() + "\n"
    data = text.encode()
    if len(data) <= MAX_CARD_BYTES:
        return text
    note = "\n\n(The card was cut here; the manifest has everything.)\n"
    return data[: MAX_CARD_BYTES - len(note)].decode("utf-8", "ignore") + note


def _how(spec: DatasetSpec) -> str:
    if all(source.HasField("generator") for source in spec.sources):
        return (
            "Every row was generated from this project's own templates, in English; no text of a person is in it.\n"
            "Template text repeats itself: a model that scores well on such rows knows the templates, not the subject."
        )
    return "Rows come from the sources below; they were read as they are and checked for form, not for truth."


def _counts(report: DatasetReport) -> str:
    tokens = f"{report.tokens:,}" if report.HasField("tokens") else "not counted"
    return (
        "\n## Size\n\n| part | rows |\n| --- | ---: |\n"
        f"| train | {report.train_rows:,} |\n| validation | {report.validation_rows:,} |\n\nTokens: {tokens}.\n"
    )


def _sources(spec: DatasetSpec, report: DatasetReport) -> str:
    lines = [
        "## Sources\n",
        "| source | kind | licence | attribution | read | wrong | duplicates | contaminated | too long | kept |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for source, count in zip(spec.sources, report.sources, strict=False):
        figures = (count.read, count.wrong, count.duplicates, count.contaminated, count.too_long, count.kept)
        cells = [
            source.name,
            _kind(source),
            count.licence,
            source.files.attribution,
            *(f"{n:,}" for n in figures),
        ]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    files = [
        f"| {source.name} | {_cell(file.name)} | {file.sha256.hex()} | {file.bytes:,} |"
        for source in spec.sources
        for file in source.files.files
    ]
    if files:
        lines += ["", "| source | file | SHA-256 | bytes |", "| --- | --- | --- | ---: |", *files]
    return "\n".join(lines) + "\n"


def _kind(source: DatasetSource) -> str:
    if source.HasField("generator"):
        category = GeneratorCategory.Name(source.generator.category).removeprefix("GENERATOR_CATEGORY_")
        return f"templates: {category.lower()}, seed {source.generator.seed}"
    form = source.files.format if source.HasField("files") else source.hub.format
    label = SourceFormat.Name(form).removeprefix("SOURCE_FORMAT_").lower()
    if source.HasField("hub"):
        return f"hub: {source.hub.dataset.name} at {source.hub.revision}, {source.hub.split}, {label}"
    return f"files: {label}"


def _categories(report: DatasetReport) -> str:
    rows = [f"| {_cell(each.category)} | {each.rows:,} |" for each in report.categories]
    return "## Categories\n\n| category | rows |\n| --- | ---: |\n" + "\n".join(rows) + "\n"


def _cleaning(spec: DatasetSpec, report: DatasetReport, similarity: float, words: int) -> str:
    near = (
        "Only equal rows were dropped as duplicates."
        if similarity >= 1
        else f"Rows of files that are more alike than {similarity:g} (Jaccard similarity of runs of five words, estimated "
        "by MinHash) were dropped; among rows from templates, which are alike by design, only equal ones."
    )
    checked = (
        f"Rows that share {words} words in a row with an evaluation file were dropped; the files' list has the SHA-256 "
        f"{report.contamination_digest.hex()}."
        if report.contamination_digest
        else "No evaluation file was at hand, so rows were not compared with any."
    )
    length = f"Rows of more than {spec.max_tokens:,} tokens were dropped." if spec.max_tokens else ""
    return "\n".join(
        ["## Cleaning\n", near, checked, *([length] if length else []), f"Seed: {spec.seed}.", ""]
    )


def _problems(report: DatasetReport) -> str:
    if not report.problem_count:
        return ""
    lines = [
        f"- {problem.source} {_cell(problem.file)} row {problem.row}: {problem.kind}: {_cell(problem.message)}"
        for problem in report.problems[:_MAX_PROBLEMS]
    ]
    return (
        f"## Wrong rows\n\n{report.problem_count:,} in all; the first {len(lines)}:\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
