"""Read the public rows of `--data DIR`: the sources whose licences let weights trained on them ship.

The texts stay outside the project; the training report names the digests of the files.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scripts.classifier.examples import UNKNOWN, Example, Intent

TRAIN, DEV, DEV_OOD = "train.jsonl.gz", "dev.jsonl.gz", "dev_ood.jsonl.gz"
# Frames without a goal of their own: attacks on the rules, not harmful content.
JAILBREAK_ONLY: Final = frozenset({"inthewild_jailbreak", "gptfuzz_templates_raw", "cse_prompt_injection"})
JAILBREAK_TOO: Final = frozenset({"sap200"})
# Their categories were mapped to laws by words ("identity theft" to Law 4), so the laws are left out.
LAWS_UNTOLD: Final = frozenset({"aart"})
# Large and repetitive sources are drawn less often, small ones more.
DRAWS: Final = {
    "aart": 0.4,
    "adversarialqa": 1.5,
    "bbq_benign": 0.4,
    "catqa_en": 1.5,
    "coconot_pref_contrast": 0.6,
    "cse_instruct_benign": 0.5,
    "cse_interpreter": 0.3,
    "gpteacher_roleplay": 0.4,
    "gsm8k_train": 0.4,
    "hatecheck": 0.5,
    "inthewild_jailbreak": 0.4,
    "mmlu_sensitive_benign": 0.35,
    "safetext_wrapped": 0.3,
    "sap200": 0.3,
}


def public_examples(path: Path) -> Iterator[Example]:
    """Every row of one file; `law` where the source's category tells it."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield _example(json.loads(line))


def _example(row: dict[str, object]) -> Example:
    unsafe, source = int(str(row["label"])), str(row["source"])
    law = row["law"]
    only_frame = source in JAILBREAK_ONLY
    return Example(
        str(row["text"]),
        UNKNOWN if only_frame else unsafe,
        source,
        str(row["id"]),
        law=int(str(law)) if unsafe and law is not None and source not in LAWS_UNTOLD else UNKNOWN,
        intent=Intent.HARMFUL if unsafe else Intent.BENIGN,
        jailbreak=int(unsafe and (only_frame or source in JAILBREAK_TOO)),
        draws=DRAWS.get(source, 1.0),
    )
