"""From weakness classes to what auditors ask for: CWE to OWASP Top 10 (2021 and 2025) to NIST SSDF; and all rules by id.

The OWASP tables are the categories' own lists of mapped CWEs, with the few classes that they leave out put where their
parents are. The SSDF practices are those of SP 800-218 version 1.1 whose neglect lets such a weakness through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.tools.code.model import Rule

# Rule ids that RepairCode has a rewrite for; the rewrites themselves answer for this list in a test.
REPAIRABLE: Final[frozenset[str]] = frozenset()

_OWASP_2021: Final[dict[str, tuple[int, ...]]] = {
    "A01:2021": (
        *(
            22,
            23,
            35,
            59,
            200,
            201,
            219,
            250,
            264,
            269,
            275,
            276,
            279,
            283,
            284,
            285,
            352,
            359,
            367,
            377,
            378,
            379,
        ),
        *(
            402,
            425,
            441,
            497,
            532,
            538,
            540,
            548,
            552,
            566,
            601,
            639,
            651,
            668,
            706,
            732,
            862,
            863,
            913,
            922,
            941,
        ),
        1275,
    ),
    "A02:2021": (
        *(
            259,
            261,
            296,
            310,
            312,
            319,
            320,
            321,
            322,
            323,
            324,
            325,
            326,
            327,
            328,
            329,
            330,
            331,
            335,
            336,
            337,
        ),
        *(338, 339, 340, 347, 523, 720, 757, 759, 760, 780, 818, 916, 1204),
    ),
    "A03:2021": (
        *(
            20,
            74,
            75,
            77,
            78,
            79,
            80,
            83,
            87,
            88,
            89,
            90,
            91,
            93,
            94,
            95,
            96,
            97,
            98,
            99,
            100,
            113,
            116,
            138,
            184,
        ),
        *(470, 471, 564, 610, 643, 644, 652, 917, 943, 1236, 1336),
    ),
    "A04:2021": (
        *(73, 183, 209, 213, 235, 256, 257, 266, 280, 311, 313, 316, 419, 430, 434, 444, 451, 454, 472, 501),
        *(522, 525, 539, 579, 598, 602, 642, 646, 650, 653, 656, 657, 799, 807, 840, 841, 927, 1021, 1173),
    ),
    "A05:2021": (
        *(
            2,
            11,
            13,
            15,
            16,
            215,
            260,
            315,
            489,
            520,
            526,
            537,
            541,
            547,
            605,
            611,
            614,
            756,
            776,
            827,
            942,
            1004,
            1032,
        ),
        *(1174, 1188, 1327),
    ),
    "A06:2021": (477, 937, 1035, 1104),
    "A07:2021": (
        *(
            255,
            287,
            288,
            290,
            294,
            295,
            297,
            300,
            302,
            304,
            306,
            307,
            308,
            346,
            384,
            521,
            549,
            603,
            613,
            620,
            640,
            798,
        ),
        *(836, 940, 1216),
    ),
    "A08:2021": (345, 353, 426, 427, 494, 502, 565, 784, 829, 830, 915),
    "A09:2021": (117, 223, 778),
    "A10:2021": (918,),
}

_OWASP_2025: Final[dict[str, tuple[int, ...]]] = {
    "A01:2025": (
        *(
            22,
            23,
            36,
            59,
            61,
            65,
            200,
            201,
            219,
            276,
            281,
            282,
            283,
            284,
            285,
            352,
            359,
            377,
            378,
            379,
            402,
            424,
            425,
        ),
        *(441, 497, 538, 540, 548, 552, 566, 601, 615, 639, 668, 732, 749, 862, 863, 918, 922, 1275),
    ),
    "A02:2025": (
        *(
            5,
            11,
            13,
            15,
            16,
            215,
            260,
            315,
            489,
            526,
            547,
            605,
            611,
            614,
            776,
            827,
            942,
            1004,
            1174,
            1188,
            1327,
        ),
    ),
    "A03:2025": (447, 477, 1035, 1104, 1329, 1357, 1395),
    "A04:2025": (
        *(
            261,
            296,
            319,
            320,
            321,
            322,
            323,
            324,
            325,
            326,
            327,
            328,
            329,
            330,
            331,
            332,
            334,
            335,
            336,
            337,
            338,
            339,
        ),
        *(340, 342, 347, 523, 757, 759, 760, 780, 916, 1204, 1240, 1241),
    ),
    "A05:2025": (
        *(
            20,
            74,
            76,
            77,
            78,
            79,
            80,
            83,
            86,
            88,
            89,
            90,
            91,
            93,
            94,
            95,
            96,
            97,
            98,
            99,
            103,
            112,
            113,
            114,
            116,
        ),
        *(129, 134, 159, 470, 493, 500, 564, 610, 643, 644, 652, 917, 943, 1236, 1336),
    ),
    "A06:2025": (
        *(
            73,
            183,
            256,
            257,
            266,
            269,
            286,
            311,
            312,
            313,
            316,
            362,
            367,
            382,
            400,
            409,
            419,
            434,
            436,
            444,
            451,
            454,
        ),
        *(
            472,
            501,
            522,
            525,
            539,
            598,
            602,
            628,
            642,
            646,
            653,
            656,
            657,
            676,
            693,
            770,
            799,
            807,
            841,
            1021,
            1022,
        ),
        1125,
    ),
    "A07:2025": (
        *(
            258,
            259,
            287,
            288,
            289,
            290,
            291,
            293,
            294,
            295,
            297,
            298,
            299,
            300,
            302,
            303,
            304,
            305,
            306,
            307,
            308,
            309,
        ),
        *(346, 350, 384, 521, 549, 613, 620, 640, 798, 940, 941, 1390, 1391, 1392, 1393),
    ),
    "A08:2025": (345, 353, 426, 427, 494, 502, 506, 509, 565, 784, 829, 830, 915, 926),
    "A09:2025": (117, 221, 223, 532, 778),
    "A10:2025": (
        *(
            209,
            234,
            235,
            248,
            252,
            274,
            280,
            369,
            390,
            391,
            394,
            396,
            397,
            460,
            476,
            478,
            484,
            550,
            636,
            703,
            754,
            755,
        ),
        756,
    ),
}

# Design and access decisions that a threat model would have asked for (PW.1.1); settings that must be safe as shipped
# (PW.9.1); other people's code and its integrity (PW.4.1, PW.4.4); secrets kept beside code (PS.1.1).
_SSDF: Final[dict[str, tuple[int, ...]]] = {
    "PW.1.1": (
        *(
            250,
            256,
            266,
            269,
            283,
            284,
            285,
            287,
            288,
            290,
            306,
            307,
            312,
            319,
            352,
            359,
            400,
            425,
            434,
            521,
            522,
            565,
        ),
        *(598, 602, 613, 620, 639, 640, 770, 778, 784, 799, 841, 862, 863, 922, 940, 941),
    ),
    "PW.4.1": (477, 676, 1104),
    "PW.4.4": (345, 353, 494, 829),
    "PW.9.1": (
        *(215, 276, 295, 297, 315, 489, 525, 605, 611, 614, 668, 732, 776, 942, 1004, 1021, 1188, 1275, 1327),
    ),
    "PS.1.1": (259, 260, 321, 540, 547, 798),
}
# Secure coding practices: every weakness in source code touches it.
_SSDF_ALWAYS: Final = "PW.5.1"


def owasp_of(cwe: Iterable[int]) -> tuple[str, ...]:
    """Give the OWASP categories of the first CWE that has any, of both years, sorted by year."""
    for number in cwe:
        found = [
            category
            for table in (_OWASP_2021, _OWASP_2025)
            for category, numbers in table.items()
            if number in numbers
        ]
        if found:
            return tuple(found)
    return ()


def ssdf_of(cwe: Iterable[int]) -> tuple[str, ...]:
    """Give the SSDF practices that weaknesses of these classes touch; never empty."""
    numbers = set(cwe)
    return tuple(sorted({_SSDF_ALWAYS, *(name for name, members in _SSDF.items() if numbers & set(members))}))


def repairable(rule_id: str) -> bool:
    """Tell whether RepairCode has a rewrite for findings of this rule."""
    return rule_id in REPAIRABLE


def by_id(*tables: Iterable[Rule]) -> dict[str, Rule]:
    """Put rules into one table.

    Raises:
        ValueError: an id comes twice or a rule names no CWE; both are mistakes in this product.
    """
    rules: dict[str, Rule] = {}
    for rule in (rule for table in tables for rule in table):
        if rule.id in rules or not rule.cwe:
            raise ValueError(f"rule {rule.id} is defined twice or names no CWE")
        rules[rule.id] = rule
    return rules
