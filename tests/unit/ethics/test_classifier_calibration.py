from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from kala.errors import ConstitutionError
from services.ethics.classifier.calibration import (
    CALIBRATION_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    read_calibration,
)
from services.ethics.classifier.classifier import load_classifier
from services.ethics.laws import Constitution
from tests.unit.ethics.classifier_files import classifier, verified

LAW_OF = {
    "weapons.chemical": 0,
    "self_harm": 1,
    "crime.theft": 2,
    "integrity.jailbreak": 3,
    "dignity.hate": 4,
}


def document() -> dict[str, Any]:
    return {
        "format": 1,
        "model_sha256": "ab" * 32,
        "tokenizer_sha256": "cd" * 32,
        "categories": list(LAW_OF),
        "temperatures": {"unsafe": 1.2, "jailbreak": 1, "injection": 0.9},
        "thresholds": {
            "refuse": {str(law): 0.5 + law / 10 for law in range(5)},
            "window_refuse": 0.8,
            "uncertain": 0.4,
            "ambiguous": 0.3,
            "jailbreak": 0.6,
            "injection": 0.7,
            "output_refuse": 0.75,
            "output_uncertain": 0.45,
        },
    }


def read(changed: Any) -> Any:  # Any: whatever a wrong file may hold
    return read_calibration(json.dumps(changed).encode(), LAW_OF)


def test_a_calibration_is_read_into_values() -> None:
    calibration = read(document())
    assert calibration.categories == tuple(LAW_OF)
    assert calibration.category_laws == (0, 1, 2, 3, 4)
    assert calibration.thresholds.refuse == (0.5, 0.6, 0.7, 0.8, 0.9)
    assert calibration.temperatures.unsafe == 1.2
    assert calibration.rule == "classifier:abababababab"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("format",), 2, "format must be 1"),
        (("model_sha256",), "AB" * 32, "model_sha256 must be 64"),
        (("tokenizer_sha256",), 7, "tokenizer_sha256 must be 64"),
        (("categories",), "all", "categories must be a list"),
        (("categories",), [*LAW_OF, "mischief"], "categories no law has mischief"),
        (("categories",), [*LAW_OF, "self_harm"], "categories names one twice"),
        (("categories",), list(LAW_OF)[1:], "categories has none of law 0"),
        (("temperatures",), [], "temperatures must be an object"),
        (("temperatures", "unsafe"), 0, "temperatures.unsafe must be 0.05 to 20"),
        (("temperatures", "spare"), 1, "temperatures.spare is unknown"),
        (("thresholds", "refuse", "3"), True, "thresholds.refuse.3 must be a number"),
        (("thresholds", "refuse", "5"), 0.5, "thresholds.refuse.5 is unknown"),
        (("thresholds", "window_refuse"), 0.0, "thresholds.window_refuse must be above 0"),
        (("thresholds", "uncertain"), 1.5, "thresholds.uncertain must be above 0"),
        (("thresholds", "injection"), "high", "thresholds.injection must be a number"),
        (("thresholds", "injection"), float("nan"), "thresholds.injection must be a number"),
    ],
)
def test_what_makes_no_sense_is_named(path: tuple[str, ...], value: object, problem: str) -> None:
    changed = document()
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ConstitutionError, match=problem):
        read(changed)


@pytest.mark.parametrize("missing", ["format", "categories", "temperatures", "thresholds"])
def test_what_is_missing_is_named(missing: str) -> None:
    changed = document()
    del changed[missing]
    with pytest.raises(ConstitutionError, match=f"{missing} is missing"):
        read(changed)


@pytest.mark.parametrize("data", [b"", b"[1", b"\xff\xfe", b"[]"])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(ConstitutionError, match=CALIBRATION_FILE):
        read_calibration(data, LAW_OF)


def calibrated(files: dict[str, bytes], **digests: str) -> dict[str, bytes]:
    """The files with a calibration that fits them but for what is given."""
    changed = json.loads(files[CALIBRATION_FILE])
    changed["model_sha256"] = hashlib.sha256(files[MODEL_FILE]).hexdigest()
    changed["tokenizer_sha256"] = hashlib.sha256(files[TOKENIZER_FILE]).hexdigest()
    return files | {CALIBRATION_FILE: json.dumps(changed | digests).encode()}


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE, CALIBRATION_FILE])
def test_a_missing_file_stops_the_load(constitution: Constitution, name: str) -> None:
    files = {key: data for key, data in verified().files.items() if key != name}
    with pytest.raises(ConstitutionError, match=f"{name}: missing"):
        load_classifier(files, constitution.laws)


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE])
def test_one_changed_byte_stops_the_load(constitution: Constitution, name: str) -> None:
    data = bytearray(verified().files[name])
    data[len(data) // 2] ^= 1
    with pytest.raises(ConstitutionError, match=f"{name}: is not the file"):
        load_classifier(dict(verified().files) | {name: bytes(data)}, constitution.laws)


@pytest.mark.parametrize("data", [b"", b"weights", b"\x08\x07" * 5000], ids=["empty", "text", "noise"])
def test_weights_that_are_none_stop_the_load(constitution: Constitution, data: bytes) -> None:
    files = calibrated(dict(verified().files) | {MODEL_FILE: data})
    with pytest.raises(ConstitutionError, match=MODEL_FILE):
        load_classifier(files, constitution.laws)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff"])
def test_a_tokenizer_that_is_none_stops_the_load(constitution: Constitution, data: bytes) -> None:
    files = calibrated(dict(verified().files) | {TOKENIZER_FILE: data})
    with pytest.raises(ConstitutionError, match=TOKENIZER_FILE):
        load_classifier(files, constitution.laws)


def test_a_network_with_other_columns_stops_the_load(constitution: Constitution) -> None:
    changed = json.loads(verified().files[CALIBRATION_FILE])
    changed["categories"] = changed["categories"][:-1]
    files = dict(verified().files) | {CALIBRATION_FILE: json.dumps(changed).encode()}
    with pytest.raises(ConstitutionError, match="columns"):
        load_classifier(files, constitution.laws)


def test_the_shipped_calibration_belongs_to_the_shipped_weights() -> None:
    assert (
        classifier().calibration.rule.removeprefix("classifier:")
        == (hashlib.sha256(verified().files[MODEL_FILE]).hexdigest()[:12])
    )
