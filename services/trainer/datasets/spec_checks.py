"""Holds a DatasetSpec against its contract before anything is read; what is wrong is named with its cure."""

from __future__ import annotations

import re
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, PermissionDeniedError
from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.files import Access, local_name, require_scheme, scheme_of
from services.trainer.datasets.formats import (
    EVALUATION_ONLY,
    KINDS,
    SFT,
    TEST_PARTS,
    label_of,
    names_test_part,
)
from services.trainer.names import DATASETS, require_stem

MAX_SOURCES: Final = 64
MAX_FILES: Final = 256
MAX_ROWS: Final = 1_000_000
MAX_SUMMARY: Final = 4096
MAX_LICENCE: Final = 128
MAX_ATTRIBUTION: Final = 1024
MIN_WORDS: Final = 5
MAX_WORDS: Final = 50
MAX_SHARE: Final = 0.5
SHA256_BYTES: Final = 32
GENERATED_LICENCE: Final = "Apache-2.0"
"""Licence of this project, and so of its templates' rows."""
_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def require_spec(spec: pb.DatasetSpec, access: Access, *, digests: bool) -> None:
    """Raises InvalidArgumentError or PermissionDeniedError; `digests` False lets digests and sizes be unset."""
    require_stem(DATASETS, spec.name, field="spec.name")
    if not 1 <= len(spec.sources) <= MAX_SOURCES:
        raise InvalidArgumentError("spec.sources", f"must be 1 to {MAX_SOURCES}")
    names: set[str] = set()
    for index, source in enumerate(spec.sources):
        at = f"spec.sources[{index}]"
        if not _NAME.fullmatch(source.name) or source.name in names:
            raise InvalidArgumentError(
                f"{at}.name", "must be 1 to 64 characters of [a-z0-9_-], each name once"
            )
        names.add(source.name)
        _require_source(at, source, access, digests=digests)
        _require_licence(at, source, spec)
    kinds = {kind_of(source): source.name for source in spec.sources}
    if len(kinds) > 1:
        listed = "; ".join(f"{name} has {kind}" for kind, name in kinds.items())
        raise InvalidArgumentError(
            "spec.sources", f"must all have rows of one kind ({listed}); build a dataset each"
        )
    _require_numbers(spec)
    for index, reference in enumerate(spec.evaluation_files):
        _require_reference(f"spec.evaluation_files[{index}]", reference, digests=digests)


def kind_of(source: pb.DatasetSource) -> str:
    """Returns what the rows of a source are."""
    if source.HasField("generator"):
        return SFT
    return KINDS[source.files.format if source.HasField("files") else source.hub.format]


def licence_of(source: pb.DatasetSource) -> str:
    """Returns the licence that a source states; this project's for its own templates."""
    if source.HasField("generator"):
        return GENERATED_LICENCE
    return source.files.licence if source.HasField("files") else source.hub.licence


def _require_source(at: str, source: pb.DatasetSource, access: Access, *, digests: bool) -> None:
    if source.HasField("generator"):
        known = pb.GeneratorCategory.values()
        if source.generator.category not in known or not source.generator.category:
            raise InvalidArgumentError(f"{at}.generator.category", "must be set to one of GeneratorCategory")
        if not 1 <= source.generator.rows <= MAX_ROWS:
            raise InvalidArgumentError(f"{at}.generator.rows", f"must be 1 to {MAX_ROWS:,}")
    elif source.HasField("files"):
        _require_files(f"{at}.files", source.files, access, digests=digests)
    elif source.HasField("hub"):
        _require_hub(f"{at}.hub", source.hub, access, digests=digests)
    else:
        raise InvalidArgumentError(at, "must have one of generator, files and hub")


def _require_files(at: str, source: pb.FileSource, access: Access, *, digests: bool) -> None:
    _require_format(at, source.format)
    if not 1 <= len(source.files) <= MAX_FILES:
        raise InvalidArgumentError(f"{at}.files", f"must be 1 to {MAX_FILES}")
    if len({file.name for file in source.files}) != len(source.files):
        raise InvalidArgumentError(f"{at}.files", "must name each file once")
    for index, file in enumerate(source.files):
        field = f"{at}.files[{index}]"
        scheme = scheme_of(file.name)
        if scheme:
            require_scheme(file.name, scheme, access)
        else:
            local_name(file.name, field=f"{field}.name")
        _require_reference(field, file, digests=digests)
        if source.format in TEST_PARTS and names_test_part(file.name):
            raise InvalidArgumentError(
                f"{field}.name",
                f"{file.name} is named like a test part of {label_of(source.format)}, which is for evaluation only; "
                "use the training part",
            )
    if len(source.attribution) > MAX_ATTRIBUTION:
        raise InvalidArgumentError(f"{at}.attribution", f"must have at most {MAX_ATTRIBUTION:,} characters")


def _require_hub(at: str, source: pb.HubSource, access: Access, *, digests: bool) -> None:
    _require_format(at, source.format)
    if "hub" not in access.schemes:
        raise PermissionDeniedError(
            f"{at}: this trainer reads no dataset hub; put the snapshot's files into the data directory and name them "
            "under files, or let the operator add hub to KALA_TRAINER_REMOTE_DATA"
        )
    if not _COMMIT.fullmatch(source.revision):
        raise InvalidArgumentError(f"{at}.revision", "must be a commit of 40 hexadecimal digits; names move")
    _require_reference(f"{at}.dataset", source.dataset, digests=digests)
    if not _HUB_NAME.fullmatch(source.dataset.name):
        raise InvalidArgumentError(f"{at}.dataset.name", "must be owner/name")
    if not source.split or names_test_part(source.split):
        raise InvalidArgumentError(f"{at}.split", "must name a part that is no test or evaluation part")


def _require_format(at: str, form: pb.SourceFormat.ValueType) -> None:
    if form in EVALUATION_ONLY:
        raise InvalidArgumentError(
            f"{at}.format",
            f"{label_of(form)} is for evaluation only and is never trained on; name it in evaluation_files instead",
        )
    if form not in KINDS:
        raise InvalidArgumentError(f"{at}.format", "must be set to one of SourceFormat")


def _require_licence(at: str, source: pb.DatasetSource, spec: pb.DatasetSpec) -> None:
    licence = licence_of(source)
    if not licence.strip() or len(licence) > MAX_LICENCE:
        raise InvalidArgumentError(
            f"{at}.licence", f"must name the licence, 1 to {MAX_LICENCE} characters, e.g. CC-BY-SA-4.0"
        )
    if spec.licences and licence not in spec.licences:
        raise InvalidArgumentError(
            f"{at}.licence", f"{licence} is not among the licences that may enter: {', '.join(spec.licences)}"
        )


def _require_numbers(spec: pb.DatasetSpec) -> None:
    if spec.HasField("duplicate_similarity") and not 0 < spec.duplicate_similarity <= 1:
        raise InvalidArgumentError("spec.duplicate_similarity", "must be above 0 and at most 1")
    if spec.contamination_words and not MIN_WORDS <= spec.contamination_words <= MAX_WORDS:
        raise InvalidArgumentError(
            "spec.contamination_words", f"must be {MIN_WORDS} to {MAX_WORDS}, or 0 for 13"
        )
    if not 0 <= spec.validation_share <= MAX_SHARE:
        raise InvalidArgumentError("spec.validation_share", f"must be 0 to {MAX_SHARE}")
    if spec.max_tokens and not spec.tokenizer.name:
        raise InvalidArgumentError("spec.max_tokens", "needs a tokenizer: name a base in spec.tokenizer")
    if len(spec.summary) > MAX_SUMMARY:
        raise InvalidArgumentError("spec.summary", f"must have at most {MAX_SUMMARY:,} characters")


def _require_reference(at: str, reference: ContentReference, *, digests: bool) -> None:
    unset = not reference.sha256 and not reference.bytes
    if not digests and unset:
        return
    if len(reference.sha256) != SHA256_BYTES or not reference.bytes:
        raise InvalidArgumentError(
            at, f"must have a SHA-256 of {SHA256_BYTES} bytes and a size; CheckDataset fills both in"
        )
