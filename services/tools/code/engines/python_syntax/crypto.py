"""Hashes, ciphers, keys and random numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit, Severity
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.tree import FunctionNode
from services.tools.code.python.values import Kind, Value

_WEAK_HASH: Final = re.compile(
    r"(?:^hashlib\.(?:md4|md5|sha1)|^Cryptodome\.Hash\.(?:MD2|MD4|MD5|SHA1?|RIPEMD)\.new|\.hashes\.(?:MD5|SHA1)|^django\.utils\.encoding\.md5)$"
)
_WEAK_NAMES: Final = frozenset({"md4", "md5", "sha1", "ripemd160", "sha"})
_FAST_HASH: Final = re.compile(r"^hashlib\.(?:md5|sha1|sha224|sha256|sha384|sha512|sha3_\w+|blake2\w|new)$")
_SLOW: Final = re.compile(
    r"pbkdf2|scrypt|bcrypt|argon2|generate_password_hash|make_password|PBKDF2|passlib|crypt_context"
)
_WEAK_CIPHER: Final = re.compile(
    r"^Cryptodome\.Cipher\.(?:DES3?|ARC[24]|Blowfish|CAST|XOR)\.new$|\.algorithms\.(?:ARC4|Blowfish|IDEA|CAST5|SEED|TripleDES|DES|RC2)$|^pyDes\.(?:des|triple_des)$|^(?:DES3?|ARC4|Blowfish)\.new$|^rc4\.\w+$"
)
_TOKENS: Final = re.compile(
    r"token|secret|passw|passwd|pwd|salt|nonce|\biv\b|otp|session|csrf|api_?key|\bkey|_key|pin\b|pin_|captcha|reset|verif|coupon|voucher|auth|cookie|credential|\bsid\b|activation|invite|licen[cs]e",
    re.IGNORECASE,
)
_RANDOM: Final = re.compile(
    r"^(?:random|numpy\.random)\.(?:random|randint|randrange|choice|choices|sample|uniform|getrandbits|shuffle|rand|randbytes|bytes)$|^random\.Random\(\)\.\w+$"
)
_MIN_RSA_BITS: Final = 2048
_MIN_CURVE_BITS: Final = 224
_MIN_ROUNDS: Final = 100_000
_MIN_TOKEN_BYTES: Final = 16
_SMALL_CURVE: Final = re.compile(r"(?:SECP|SECT)(?:160|163|192)\w*|BrainpoolP(?:160|192)", re.IGNORECASE)
_AES_KEY_BYTES: Final = 16


def hashes(subject: Subject) -> Iterator[Hit]:
    """Weak hashes, and fast ones for passwords."""
    slow = bool(_SLOW.search(subject.source.text))
    for call in subject.facts.calls:
        weak = bool(_WEAK_HASH.search(call.name)) or (
            call.name == "hashlib.new" and call.arg(0).string.lower().replace("-", "") in _WEAK_NAMES
        )
        secret = _about_password(call)
        if call.arg(-1, "usedforsecurity").const is False:
            continue
        if weak and not secret and _asked_for(subject, call):
            yield subject.hit("weak_hash", call.node, severity=Severity.LOW)
        elif weak or (
            call.name == "hmac.new" and call.arg(2, "digestmod").origin in {"hashlib.md5", "hashlib.sha1"}
        ):
            yield subject.hit("fast_password_hash" if secret and not slow else "weak_hash", call.node)
        elif secret and not slow and _FAST_HASH.match(call.name) and not _salted(subject, call):
            yield subject.hit("fast_password_hash", call.node)
        elif call.name in {
            "crypt.crypt",
            "passlib.hash.md5_crypt.hash",
            "passlib.hash.des_crypt.hash",
            "passlib.hash.unix_disabled.hash",
            "passlib.hash.sha1_crypt.hash",
        }:
            yield subject.hit("weak_hash", call.node)
        elif call.name == "zlib.crc32" and secret:
            yield subject.hit("fast_password_hash", call.node)


def _asked_for(subject: Subject, call: Call) -> bool:
    """A function that is named after the hash, in a file without imports but hashlib, is an exercise."""
    return bool(re.search(r"md5|sha1", call.scope.name, re.IGNORECASE)) and subject.facts.imports <= {
        "hashlib",
        "typing",
        "hashlib.md5",
        "typing.List",
    }


def _about_password(call: Call) -> bool:
    if any(
        taint.kind is Kind.SECRET and re.search(r"pass|pwd|pin", taint.steps[0][1], re.IGNORECASE)
        for value in call.args
        for taint in value.taints
    ):
        return True
    return bool(re.search(r"password|passwd", call.scope.name, re.IGNORECASE))


def _salted(subject: Subject, call: Call) -> bool:
    holder = call.scope.node
    return holder is not None and bool(
        re.search(
            r"salt|urandom|token_bytes",
            subject.tree.text(holder) if isinstance(holder, FunctionNode) else subject.source.text,
            re.IGNORECASE,
        )
    )


def derivations(subject: Subject) -> Iterator[Hit]:
    """Key derivation with few rounds or a salt that is no secret of its own."""
    for call in subject.facts.calls:
        if call.name == "hashlib.pbkdf2_hmac":
            rounds, salt = call.arg(3, "iterations"), call.arg(2, "salt")
        elif call.method in {"PBKDF2HMAC", "PBKDF2"}:
            rounds, salt = (
                (call.arg(3, "iterations"), call.arg(2, "salt"))
                if call.method == "PBKDF2HMAC"
                else (call.arg(3, "count"), call.arg(1, "salt"))
            )
            if call.method == "PBKDF2" and not call.given(3, "count"):
                yield subject.hit("few_iterations", call.node)
        elif call.name in {"hashlib.scrypt", "Cryptodome.Protocol.KDF.scrypt"} or call.name in {
            "bcrypt.hashpw",
            "crypt.crypt",
        }:
            rounds, salt = Value(), call.arg(1, "salt")
        elif call.name == "bcrypt.gensalt":
            rounds, salt = Value(), Value()
            cost = call.arg(0, "rounds").const
            if isinstance(cost, int) and cost < 10:
                yield subject.hit("few_iterations", call.node)
        else:
            continue
        if (
            isinstance(rounds.const, int)
            and not isinstance(rounds.const, bool)
            and rounds.const < _MIN_ROUNDS
        ):
            yield subject.hit("few_iterations", call.node)
        if isinstance(salt.const, str | bytes) or any(
            taint.kind is Kind.PARAMETER and "user" in taint.steps[0][1] for taint in salt.taints
        ):
            yield subject.hit("fixed_salt", call.node)
    for store in subject.facts.stores:
        if (
            re.fullmatch(r"(?:\w+\.)?\w*salt", store.name, re.IGNORECASE)
            and isinstance(store.value.const, str | bytes)
            and store.value.const
            and "config" not in store.name
        ) and re.search(r"hash|crypt|pbkdf", subject.source.text, re.IGNORECASE):
            yield subject.hit("fixed_salt", store.node)
    for node, value, _ in subject.facts.texts:
        if re.search(
            r"hash|sha\d|md5", subject.tree.text(subject.tree.parents.get(node, node)), re.IGNORECASE
        ) and any(
            isinstance(item.const, str | bytes)
            and item.node is not None
            and item.origin == ""
            and len(item.const) > 0
            and re.search(r"\bsalt\b", subject.tree.text(node), re.IGNORECASE)
            for item in value.items
        ):
            yield subject.hit("fixed_salt", node)


def ciphers(subject: Subject) -> Iterator[Hit]:
    """Broken ciphers, ECB, fixed vectors."""
    for call in subject.facts.calls:
        if _WEAK_CIPHER.search(call.name):
            yield subject.hit("weak_cipher", call.node)
        if call.name.endswith(("modes.ECB", ".modes.ECB")):
            yield subject.hit("ecb_mode", call.node)
        if re.search(r"(?:AES|DES3?|Blowfish)\.new$", call.name):
            yield from _cipher_new(subject, call)
        elif (
            re.search(r"modes\.(?:CBC|CTR|OFB|CFB8?|GCM)$", call.name)
            and _is_fixed(call.arg(0, "initialization_vector"), subject)
        ) or (
            call.method == "encrypt"
            and re.search(r"AESGCM|ChaCha20Poly1305|AESCCM", call.name)
            and _is_fixed(call.arg(0, "nonce"), subject)
        ):
            yield subject.hit("fixed_iv", call.node)
    for node in subject.tree.all(ast.Attribute):
        if node.attr == "MODE_ECB" and not isinstance(subject.tree.parents.get(node), ast.Call):
            yield subject.hit("ecb_mode", node)


def _cipher_new(subject: Subject, call: Call) -> Iterator[Hit]:
    mode = call.arg(1, "mode")
    if mode.origin.endswith("MODE_ECB") or (not call.given(1, "mode") and "AES" in call.name):
        yield subject.hit("ecb_mode", call.node)
        return
    for vector in (call.arg(2, "iv"), call.keywords.get("IV", Value()), call.keywords.get("nonce", Value())):
        if _is_fixed(vector, subject):
            yield subject.hit("fixed_iv", call.node)
            break
    key = call.arg(0, "key")
    if isinstance(key.const, str | bytes):
        yield subject.hit("weak_key" if len(key.const) < _AES_KEY_BYTES else "hardcoded_key", call.node)


def _is_fixed(value: Value, subject: Subject) -> bool:
    if isinstance(value.const, str | bytes | int) and not isinstance(value.const, bool):
        return True
    if value.origin in {"bytes()", "bytearray()"} and not value.taints:
        return True
    if re.match(r"(?:random|time|numpy\.random)\.", value.origin):
        return True
    source = subject.tree.text(value.node) if isinstance(value.node, ast.expr) else ""
    return bool(re.match(r"(?:bytes|bytearray)\(|random\.|b?['\"].*['\"] \* ", source)) or bool(
        source and re.search(r"\brandom\.(?:randint|choice|getrandbits)|\btime\.time\(", source)
    )


def keys(subject: Subject) -> Iterator[Hit]:
    """Keys that are too short, and RSA without OAEP."""
    for call in subject.facts.calls:
        name = call.name
        if re.search(
            r"(?:^|\.)(?:rsa|dsa|RSA|DSA|dh)\.(?:generate_private_key|generate|generate_parameters|newkeys)$",
            name,
        ):
            bits = (
                call.keywords.get("key_size")
                or call.keywords.get("bits")
                or call.keywords.get("nbits")
                or call.keywords.get("modulus_length")
            )
            if bits is None:
                bits = (
                    call.arg(1)
                    if name.endswith("generate_private_key") and "rsa" in name
                    else call.arg(1)
                    if name.endswith("generate_parameters")
                    else call.arg(0)
                )
            if isinstance(bits.const, int) and bits.const < _MIN_RSA_BITS:
                yield subject.hit("weak_key", call.node)
        elif call.method in {"generate_private_key", "derive_private_key"} and any(
            _SMALL_CURVE.search(value.origin) for value in call.args
        ):
            yield subject.hit("weak_key", call.node)
        elif name.endswith(("PKCS1_v1_5.new", "padding.PKCS1v15")):
            if "Signature" not in name and re.search(r"decrypt|encrypt", subject.source.text):
                yield subject.hit("no_padding", call.node)
        elif (
            call.method in {"generate_key", "PKey"}
            and "OpenSSL" in name
            and 0 < call.arg(1, "bits").number < _MIN_RSA_BITS
        ):
            yield subject.hit("weak_key", call.node)


def random_salts(subject: Subject) -> Iterator[Hit]:
    """Salts out of predictable numbers."""
    for store in subject.facts.stores:
        if re.fullmatch(r"(?:\w+\.)?\w*salt\w*", store.name, re.IGNORECASE) and re.search(
            r"\brandom\.(?:randint|choice|random|randrange|getrandbits|sample|randbytes)|time\.time",
            subject.tree.text(store.node),
        ):
            yield subject.hit("fixed_salt", store.node)


def randomness(subject: Subject) -> Iterator[Hit]:
    """Random numbers that can be foretold, where they must not."""
    seeded = [
        call
        for call in subject.facts.calls
        if call.name in {"random.seed", "numpy.random.seed", "random.Random"}
    ]
    about = bool(_TOKENS.search(re.sub(r"#.*", "", subject.source.text)))
    for call in seeded:
        seed = call.arg(0, "a")
        timed = re.match(r"(?:time|datetime|os\.getpid)", seed.origin) or (
            isinstance(seed.node, ast.expr)
            and re.search(r"time\.|datetime|getpid", subject.tree.text(call.node))
        )
        if (isinstance(seed.const, int | str | float) and about) or timed:
            yield subject.hit("predictable_seed", call.node)
    for call in subject.facts.calls:
        if _RANDOM.match(call.name) and _guards_secret(subject, call):
            yield subject.hit("insecure_random", call.node)
        elif call.name in {"uuid.uuid1", "uuid.uuid3"} and _guards_secret(subject, call):
            yield subject.hit("low_entropy", call.node)
        elif re.match(r"secrets\.token_(?:hex|urlsafe|bytes)$", call.name) or call.name == "os.urandom":
            size = call.arg(0, "nbytes").const
            if isinstance(size, int) and size < _MIN_TOKEN_BYTES // 2 and _guards_secret(subject, call):
                yield subject.hit("low_entropy", call.node)
        elif call.name in {"time.time", "datetime.datetime.now"} and _guards_secret(
            subject, call, narrow=True
        ):
            yield subject.hit("low_entropy", call.node)


def _guards_secret(subject: Subject, call: Call, *, narrow: bool = False) -> bool:
    """Whether the name that is bound, the function or the class says that the number is a secret."""
    statement = subject.tree.enclosing(call.node, ast.stmt)
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(_TOKENS.search(subject.tree.text(target)) for target in targets):
            return not narrow or (
                bool(
                    re.search(
                        r"token|session_?id|secret|reset",
                        " ".join(subject.tree.text(t) for t in targets),
                        re.IGNORECASE,
                    )
                )
                and not re.search(
                    r"expir|time|start|_at\b|last",
                    " ".join(subject.tree.text(t) for t in targets),
                    re.IGNORECASE,
                )
            )
    if narrow:
        return False
    if call.scope.name and _TOKENS.search(call.scope.name):
        return True
    parent = subject.tree.parents.get(call.node)
    return isinstance(parent, ast.keyword) and bool(_TOKENS.search(parent.arg or ""))


CHECKS: Final[tuple[Check, ...]] = (hashes, derivations, ciphers, keys, random_salts, randomness)
