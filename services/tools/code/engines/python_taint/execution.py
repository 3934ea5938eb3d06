"""Text from outside that becomes a command, code or objects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import ANYONE, OUTSIDE, REMOTE, Label, Value, skeleton

_SHELLS: Final = frozenset(
    {
        "os.system",
        "os.popen",
        "os.popen2",
        "os.popen3",
        "os.popen4",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "popen2.popen2",
        "popen2.popen3",
        "asyncio.create_subprocess_shell",
    }
)
_STARTERS: Final = frozenset(
    {
        "subprocess.run",
        "subprocess.call",
        "subprocess.Popen",
        "subprocess.check_call",
        "subprocess.check_output",
        "asyncio.create_subprocess_exec",
        "pexpect.spawn",
        "pexpect.run",
        "pty.spawn",
    }
)
_EXECS: Final = re.compile(r"^os\.(?:exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|startfile)$")
_RUNNERS: Final = frozenset(
    {
        "eval",
        "exec",
        "compile",
        "execfile",
        "builtins.eval",
        "builtins.exec",
        "code.InteractiveInterpreter().runsource",
        "code.interact",
        "pandas.eval",
        "numexpr.evaluate",
        "timeit.timeit",
    }
)
_DESERIALISERS: Final = re.compile(
    r"^(?:pickle|marshal|shelve|jsonpickle|joblib|torch|numpy|pandas)\.(?:loads?|open|decode|read_pickle|Unpickler)$|^yaml\.(?:unsafe_load|full_load|load)(?:_all)?$|^pickle\.Unpickler\(\)\.load$|^yaml\.YAML\(\)\.load$"
)
_SAFE_LOADER: Final = re.compile(r"Safe|Base")


def commands(subject: Subject) -> Iterator[Hit]:
    """Commands put together from text, and programs chosen from outside."""
    for call in subject.facts.calls:
        if call.name in _SHELLS:
            yield from _shell(subject, call, call.arg(0, "cmd"))
        elif call.name in _STARTERS:
            command = call.arg(0, "args")
            if call.arg(-1, "shell").const is True or _is_shell(command):
                yield from _shell(subject, call, command)
            else:
                yield from _program(subject, call, command)
        elif _EXECS.match(call.name):
            for value in call.args:
                taints = value.from_(OUTSIDE, Label.SHELL)
                if taints:
                    yield subject.hit("argument_injection", call.node, taints)
                    break
        elif call.method in {"exec_command", "send_command", "sudo", "invoke_shell"} or call.name in {
            "fabric.api.run",
            "fabric.api.sudo",
            "fabric.api.local",
            "invoke.run",
        }:
            taints = call.arg(0, "command").from_(OUTSIDE, Label.SHELL)
            if taints:
                yield subject.hit("command_injection", call.node, taints)


def _shell(subject: Subject, call: Call, command: Value) -> Iterator[Hit]:
    taints = command.from_(ANYONE, Label.SHELL)
    if taints:
        yield subject.hit("command_injection", call.node, taints)


def _is_shell(command: Value) -> bool:
    """`["sh", "-c", text]` is a shell too."""
    return (
        len(command.items) >= 3
        and bool(re.search(r"(?:^|/)(?:ba|z|da|k)?sh$|cmd(?:\.exe)?$|powershell", command.items[0].string))
        and command.items[1].string in {"-c", "/c", "-Command", "-lc"}
    )


def _program(subject: Subject, call: Call, command: Value) -> Iterator[Hit]:
    first = command.items[0] if command.items else command
    taints = first.from_(OUTSIDE, Label.SHELL)
    if not taints and not command.items:
        taints = tuple(taint for taint in command.from_(OUTSIDE, Label.SHELL) if command.built)
    if not taints and command.items:
        # A value that may begin with "-" is an option; after "--" it is not.
        plain = [item.const for item in command.items]
        taints = tuple(
            taint
            for item in command.items[1:]
            for taint in item.from_(REMOTE, Label.SHELL)
            if "--" not in plain and not item.built
        )
        taints = (
            taints
            if command.items[0].string.rsplit("/", 1)[-1]
            in {
                "find",
                "tar",
                "git",
                "ssh",
                "curl",
                "wget",
                "sh",
                "bash",
                "python",
                "python3",
                "rsync",
                "sed",
                "awk",
                "env",
                "xargs",
                "sudo",
            }
            else ()
        )
    if taints:
        yield subject.hit("argument_injection", call.node, taints)


def code(subject: Subject) -> Iterator[Hit]:
    """Text that is run as Python."""
    for call in subject.facts.calls:
        if call.name in _RUNNERS:
            taints = call.arg(0).from_(ANYONE, Label.CODE)
            if taints:
                yield subject.hit("code_injection", call.node, taints)
        elif call.name in {"exec", "eval"} and call.args and call.args[0].origin.startswith("requests."):
            yield subject.hit("code_download", call.node)


def downloads(subject: Subject) -> Iterator[Hit]:
    """Downloaded text or files that are run at once."""
    fetched = [
        c
        for c in subject.facts.calls
        if c.name
        in {
            "urllib.request.urlretrieve",
            "requests.get",
            "urllib.request.urlopen",
            "httpx.get",
            "wget.download",
        }
    ]
    if not fetched:
        return
    for call in subject.facts.calls:
        if call.name in _RUNNERS and any(taint.kind.name == "NETWORK" for taint in call.arg(0).taints):
            yield subject.hit("code_download", call.node, call.arg(0).taints)
    text = subject.source.text
    if re.search(r"hashlib|hmac|verify|checksum|signature|gpg|sha256", text, re.IGNORECASE):
        return
    starts = [
        c
        for c in subject.facts.calls
        if c.name in _STARTERS | _SHELLS
        or c.name in {"importlib.import_module", "runpy.run_path", "exec", "os.startfile", "ctypes.CDLL"}
    ]
    writes = [c for c in fetched if c.name in {"urllib.request.urlretrieve", "wget.download"}] or (
        fetched if any(c.method in {"write", "write_bytes"} for c in subject.facts.calls) else []
    )
    for call in writes:
        if (
            starts
            or any(c.method in {"extractall", "unpack_archive", "chmod"} for c in subject.facts.calls)
            or re.search(
                r"\.(?:py|sh|exe|whl|tar\.gz|zip|deb|msi|bin|so|dll)\b",
                "".join(skeleton(value) for value in call.args),
            )
        ):
            yield subject.hit("code_download", call.node)


def deserialisation(subject: Subject) -> Iterator[Hit]:
    """Data from outside that becomes objects."""
    for call in subject.facts.calls:
        if not _DESERIALISERS.match(call.name) and not (
            call.method == "load" and call.receiver.origin.startswith("pickle.Unpickler")
        ):
            continue
        if call.name.startswith("yaml."):
            loader = _loader(subject, call)
            if call.name.startswith("yaml.load") and _SAFE_LOADER.search(loader):
                continue
            if "YAML()" in call.name and not any(
                c.name == "yaml.YAML" and c.arg(0, "typ").string == "unsafe" for c in subject.facts.calls
            ):
                continue
            yield subject.hit("unsafe_deserialisation", call.node, call.arg(0).from_(ANYONE))
            continue
        if call.name.startswith(("torch.", "numpy.", "pandas.")) and (
            call.arg(-1, "weights_only").const is True
            or (call.name.startswith("numpy") and call.arg(-1, "allow_pickle").const is not True)
        ):
            continue
        taints = call.arg(0).from_(ANYONE) or call.receiver.from_(ANYONE)
        if taints and (
            call.arg(0).from_(OUTSIDE) or call.name.startswith(("pickle", "marshal", "jsonpickle", "shelve"))
        ):
            yield subject.hit("unsafe_deserialisation", call.node, taints)


def _loader(subject: Subject, call: Call) -> str:
    """Give all that the file says of the loader: its name, the text that makes it, and the bases of a class of its own."""
    value = call.arg(1, "Loader")
    said = [value.origin, subject.tree.text(value.node) if value.node is not None else ""]
    for node in subject.tree.all(ast.ClassDef):
        if node.name == value.origin:
            said.extend(subject.tree.text(base) for base in node.bases)
    return " ".join(said)


CHECKS: Final[tuple[Check, ...]] = (commands, code, downloads, deserialisation)
