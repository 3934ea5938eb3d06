"""What programs are told in a script: rights, names of files, certificates, passwords, downloads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from services.tools.code.engines.secrets.texts import is_placeholder
from services.tools.code.engines.shell.flows import SHELLS
from services.tools.code.engines.shell.script import Command, Script, names_in, plain, variable
from services.tools.code.grammar import Node

Found = Iterator[tuple[str, Node]]
_CHANGES: Final = frozenset({"rm", "rmdir", "unlink", "shred", "chmod", "chown", "chgrp", "mv"})
_LOADERS: Final = frozenset({"curl", "wget", "fetch", "aria2c", "lynx"})
_RUNNERS: Final = SHELLS | {"python", "python3", "perl", "ruby", "node", "php", "source", "."}
_OPEN_MODE: Final = re.compile(
    r"^0?[0-7]?[0-7]{2}[2367]$|^(?:[ugo]*[ao][ugo]*|)\+[rx]*w[rxX]*$|^(?:[ugo]*[ao][ugo]*)=[rx]*w[rx]*$"
)
_SET_ID: Final = re.compile(r"^0?[2467][0-7]{3}$|^[ugo]*\+[rwx]*s")
_TEMP: Final = re.compile(r"^[\"']?/(?:var/)?tmp/[^\s*?]+$")
_SECRET_NAME: Final = re.compile(r"pass|secret|token|otp|pin|key|salt|nonce", re.IGNORECASE)
_URL_LOGIN: Final = re.compile(r"^[\"']?(?:http|ftp)://[^/\s@:]+:[^/\s@]+@")
_SAFE_WORD: Final = re.compile(r"^[\w./@%+=:,-]+$")


def settings(script: Script) -> Found:
    """Every weakness that needs no data from outside."""
    for command in script.commands:
        for check in _CHECKS:
            yield from check(script, command)
    for node in script.nodes:
        if node.kind == "pipeline":
            yield from _pipeline(node)
        elif node.kind == "variable_assignment" and "value" in node.fields:
            yield from _assignment(script, node)
        elif node.kind == "file_redirect":
            yield from _redirect(script, node)


def _removal(script: Script, command: Command) -> Found:
    if command.name not in _CHANGES:
        return
    for word in command.words:
        parts = (
            [word]
            if word.kind in {"simple_expansion", "expansion"}
            else word.children
            if word.kind == "concatenation"
            else []
        )
        for part in parts:
            if part.kind in {"simple_expansion", "expansion", "command_substitution"} and not _harmless(
                script, part
            ):
                yield "unquoted_removal", command.node
                return
    text = script.tree.source.text
    if command.name == "rm" and any(re.match(r"-\w*[rR]|--recursive", each) for each in command.texts):
        for word in command.words:
            match = re.match(r"\"?\$\{?(\w+)\}?\"?/", word.text)
            if (
                match
                and match[1] not in script.constants
                and not re.search(r"\bset -\w*u|nounset", text)
                and not re.search(
                    rf"-[nzd] \"?\$\{{?{re.escape(match[1])}\b|\b{re.escape(match[1])}=\"?\$\(mktemp|:\?",
                    text,
                )
            ):
                yield "unset_removal", command.node
                return


def _harmless(script: Script, node: Node) -> bool:
    name = variable(node)
    constant = script.constants.get(name)
    return name in {"#", "?", "$", "!", "UID", "EUID", "PPID"} or (
        constant is not None and _SAFE_WORD.match(constant) is not None
    )


def _downloads(_script: Script, command: Command) -> Found:
    if command.name in _RUNNERS or command.name == "eval":
        for word in command.words:
            for inner in word.walk():
                if inner.kind in {"process_substitution", "command_substitution"} and _loads(inner):
                    yield "downloaded_code", command.node
                    return


def _loads(node: Node) -> bool:
    return any(
        each.kind == "command_name" and each.text.rpartition("/")[2] in _LOADERS for each in node.walk()
    )


def _pipeline(node: Node) -> Found:
    commands = [each for each in node.children if each.kind in {"command", "redirected_statement"}]
    texts = [each.text for each in commands]
    if len(texts) > 1 and any(_loads(each) for each in commands[:-1]):
        runner = re.match(
            r"(?:(?:sudo|env|exec)\s+(?:-\S+\s+|\w+=\S*\s+)*)*(?:/\S*/)?(\w+)\s*(.*)", texts[-1], re.DOTALL
        )
        if (
            runner
            and runner[1] in _RUNNERS
            and not re.match(r"-[ce]\b|-m\s|[\w./]+\.(?:py|pl|rb|js|sh)\b", runner[2])
        ):
            yield "downloaded_code", node
    if re.match(r"(?:echo|printf)\b", texts[0] if texts else "") and len(texts) > 1:
        last = texts[-1]
        if re.search(r"\bsudo\s+(?:-\w+\s+)*-\w*S|passwd\s.*--stdin|\bchpasswd\b", last) and not names_in(
            commands[0]
        ):
            yield "hardcoded_password", node
    if re.search(r"\bdate\b.*\|\s*(?:md5sum|sha\d*sum|base64)", node.text) and _named_secret(node):
        yield "insecure_random", node


def _named_secret(node: Node) -> bool:
    around = node.around("variable_assignment")
    return around is not None and _SECRET_NAME.search(around.fields["name"].text) is not None


def _network(script: Script, command: Command) -> Found:
    name, texts = command.name, command.texts
    joined = " ".join(texts)
    unchecked = (
        (
            name == "curl"
            and any(
                text == "--insecure"
                or (re.fullmatch(r"-[A-Za-z#]*k[A-Za-z#]*", text) and not re.match(r"-[oHdXuAeTF].", text))
                for text in texts
            )
        )
        or (name == "wget" and "--no-check-certificate" in texts)
        or (
            name in {"ssh", "scp", "sftp", "rsync", "sshpass", "autossh"}
            and re.search(r"StrictHostKeyChecking[= ]\"?(?:no|off)\b", joined)
        )
        or (name == "git" and re.search(r"http\.sslVerify[= ]\"?(?:false|0)", joined, re.IGNORECASE))
        or (name in {"pip", "pip3"} and "--trusted-host" in joined)
        or (name in {"npm", "yarn"} and re.search(r"strict-ssl[= ]false", joined))
        or (
            name in {"apt-get", "apt", "yum", "dnf"}
            and re.search(r"--allow-unauthenticated|--nogpgcheck|--force-yes", joined)
        )
    )
    if unchecked:
        yield "certificate_unchecked", command.node
    if name in {"telnet", "ftp", "rsh", "rlogin", "rcp", "tftp"} or (
        name in _LOADERS and re.search(r"(?:^|\s)[\"']?(?:http|ftp)://(?!localhost|127\.)", joined)
        and re.search(r"(?:^|\s)(?:-u|--user)\b|password|Authorization|token", joined, re.IGNORECASE)
    ):  # fmt: skip
        yield "clear_text", command.node
    if name in {"nc", "ncat", "netcat", "socat"} and re.search(
        r"(?:^|\s)-\w*[ec]\s*\S*sh\b|EXEC:\S*sh\b", joined
    ):
        yield "world_listener", command.node
    if (name == "setenforce" and texts == ["0"]) or (name == "ufw" and "disable" in texts) or (name == "iptables" and re.fullmatch(r"(?:-t \w+ )?(?:-F|--flush)|-P INPUT ACCEPT", joined)) \
            or (name == "systemctl" and re.search(r"(?:stop|disable|mask)\b.*\b(?:firewalld|ufw|apparmor|auditd)", joined)):  # fmt: skip
        yield "security_off", command.node
    if re.search(r"NOPASSWD:\s*ALL", joined) and name in {"echo", "printf", "sed", "tee"}:
        yield "sudo_rights", command.node
    if name in {"bash", "sh", "exec"} and "/dev/tcp/" in command.node.text:
        yield "world_listener", command.node
    _ = script


def _rights(_script: Script, command: Command) -> Found:
    name, texts = command.name, command.texts
    if name == "chmod":
        if any(_OPEN_MODE.match(text) for text in texts if not text.startswith("-")) and not any(
            re.fullmatch(r"1[0-7]{3}", text) for text in texts
        ):
            yield "open_permissions", command.node
        elif any(_SET_ID.match(text) for text in texts):
            yield "set_id_file", command.node
    elif (
        name == "umask"
        and texts
        and re.fullmatch(r"0*[0-7]{0,2}[01]|0+", texts[0])
        and not re.fullmatch(r"0*[0-7]*7[0-7]?7", texts[0])
    ):
        yield "open_permissions", command.node
    elif name in {"mkdir", "install"}:
        for option, mode in pairwise(texts):
            if option in {"-m", "--mode"} and _OPEN_MODE.match(mode) and not re.match(r"0?1[0-7]{3}$", mode):
                yield "open_permissions", command.node


def _passwords(_script: Script, command: Command) -> Found:
    for word in _password_words(command):
        # A value that stands in an expansion is at least not in the source.
        text = plain(word)
        value = re.sub(r"^(?:-p|--password=|--pass=|-w|-a|pass:|[^:%\s]+[:%])", "", text)
        if not value or value.startswith("@"):
            continue
        yield "password_argument", command.node
        if not names_in(word) and "$" not in text and not is_placeholder(value):
            yield "hardcoded_password", command.node
        return


def _password_words(command: Command) -> Iterator[Node]:
    name, words = command.name, command.words
    for index, word in enumerate(words):
        text = word.text
        following = words[index + 1] if index + 1 < len(words) else None
        attached = (
            (name in {"mysql", "mysqldump", "mysqladmin", "mariadb"} and re.match(r"-p.|--password=.", text))
            or (name == "sshpass" and re.match(r"-p.", text))
            or (name in {"mongo", "mongosh", "mongodump"} and re.match(r"--password=.", text))
            or (name == "openssl" and re.match(r"[\"']?pass:", text))
            or (name == "7z" and re.match(r"-p.", text))
        )
        if attached:
            yield word
        if following is None:
            continue
        if (
            (name == "sshpass" and text == "-p")
            or (name in {"zip", "unzip"} and text == "-P")
            or (
                name in {"docker", "podman", "helm", "az"}
                and text in {"-p", "--password"}
                and "login" in command.texts
            )
            or (name == "redis-cli" and text == "-a")
            or (name.startswith("ldap") and text == "-w")
            or (name == "useradd" and text in {"-p", "--password"})
            or (name in {"mongo", "mongosh", "mongodump"} and text in {"-p", "--password"})
            or (name == "openssl" and text in {"-k", "-K"} and "enc" in command.texts)
            or (name == "curl" and text in {"-u", "--user"} and re.search(r":.", plain(following)))
            or (name == "smbclient" and text == "-U" and "%" in following.text)
            or (name == "wget" and text in {"--password", "--http-password"})
        ):
            yield following
        if name == "htpasswd" and re.match(r"-\w*b", text):
            yield words[-1]


def _crypto(_script: Script, command: Command) -> Found:
    name, texts = command.name, command.texts
    if name in {"md5sum", "sha1sum", "md5"} or (
        name == "openssl"
        and any(text in {"-md5", "-sha1", "md5", "sha1"} for text in texts)
        and "enc" not in texts
    ):
        yield "weak_hash", command.node
    elif name == "openssl" and any(
        re.fullmatch(r"-(?:des|des3|des-\w+|rc[24]\S*|bf\S*|[\w-]+-ecb)", text) for text in texts
    ):
        yield "weak_cipher", command.node
    elif (
        name == "openssl"
        and any(
            text in {"512", "768", "1024"} or re.fullmatch(r"rsa:(?:512|768|1024)", text) for text in texts
        )
    ) or (name == "ssh-keygen" and re.search(r"-t dsa\b|-b (?:512|768|1024)\b", " ".join(texts))):
        yield "weak_key", command.node


def _temporary(_script: Script, command: Command) -> Found:
    if command.name in {"touch", "tee", "mkdir"} and any(
        _TEMP.match(word.text) and not _unguessed(word) for word in command.words
    ):
        if not (command.name == "mkdir" and "-p" not in command.texts):
            yield "insecure_temporary", command.node
    elif command.name in {"curl", "wget"}:
        for option, target in pairwise(command.texts):
            if (
                re.fullmatch(r"-\w*[oO]|--output(?:-document)?", option)
                and _TEMP.match(target)
                and "$" not in target
            ):
                yield "insecure_temporary", command.node


def _unguessed(word: Node) -> bool:
    """Whether a name has a part that others cannot know; the process id and $RANDOM are none."""
    return bool(names_in(word) - {"$", "RANDOM", "USER", "LOGNAME", "UID", "PPID"}) or "mktemp" in word.text


def _assignment(script: Script, node: Node) -> Found:
    name, value = node.fields["name"].text, node.fields["value"]
    text = plain(value)
    if name == "PATH" and re.search(r"(?:^|:)(?:\.|)(?::|$)", text):
        yield "search_path", node
    elif _SECRET_NAME.search(name) and "RANDOM" in names_in(value):
        yield "insecure_random", node
    elif (name, text) in {
        ("GIT_SSL_NO_VERIFY", "1"),
        ("GIT_SSL_NO_VERIFY", "true"),
        ("NODE_TLS_REJECT_UNAUTHORIZED", "0"),
        ("PYTHONHTTPSVERIFY", "0"),
    }:
        yield "certificate_unchecked", node
    elif _TEMP.match(value.text.replace('"', "")) and not _unguessed(value):
        used = rf">>?\s*\"?\$\{{?{re.escape(name)}\b|\b(?:touch|tee|mkdir -p)\s+(?:-\w+\s+)*\"?\$\{{?{re.escape(name)}\b"
        if names_in(value) & {"$", "RANDOM"} or re.search(used, script.tree.source.text):
            yield "insecure_temporary", node
    elif (
        name in {"PGPASSWORD", "MYSQL_PWD", "SSHPASS", "RESTIC_PASSWORD"}
        and text
        and "$" not in text
        and not is_placeholder(text)
    ):
        yield "hardcoded_password", node


def _redirect(script: Script, node: Node) -> Found:
    target = node.fields.get("destination")
    if (
        target is not None
        and re.match(r"\d*&?>", node.text)
        and _TEMP.match(target.text)
        and not _unguessed(target)
    ):
        yield "insecure_temporary", node
    _ = script


_CHECKS: Final[tuple[Callable[[Script, Command], Found], ...]] = (
    _removal,
    _downloads,
    _network,
    _rights,
    _passwords,
    _crypto,
    _temporary,
)
