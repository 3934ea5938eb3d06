"""Controls that are missing: who asks, may he, did the right step come before."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.facts import Scope
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.tree import FunctionNode

# A file in which any of these occurs asks somewhere who the caller is.
_ASKS_WHO: Final = re.compile(
    r"login_required|jwt_required|requires?_auth|auth_required|token_required|admin_required|permission_required|current_user|is_authenticated|authenticate|check_password|verify_password"
    r"|session\.get\(|session\[|in session\b|HTTPBasicAuth|HTTPTokenAuth|Authorization|authorization|get_jwt|verify_jwt|Depends\(|Security\(|user_passes_test|IsAuthenticated|permission_classes|UserPassesTestMixin|LoginRequiredMixin|abort\(40[13]\)|is_admin|has_perm|roles_required|api_key|request\.user\b|before_request|g\.user|check_auth|verify_token|401|403|staff_member_required|@auth|\.authenticated\b",
)
_ASKS_MAY: Final = re.compile(
    r"is_admin|is_staff|is_superuser|has_perm|has_role|role|permission|admin_required|owner|user_passes_test|abort\(40[13]\)|403|author|can_\w+|authoriz|user_id\s*[!=]=|[!=]=\s*current_user|current_user\.id|created_by|belongs",
    re.IGNORECASE,
)
_SENSITIVE_PATH: Final = re.compile(
    r"admin|delete|remove|drop|destroy|shutdown|reboot|restart|reset(?:_|-)?(?:db|database|all|system)|config|settings|internal|manage|dashboard|transfer|withdraw|payment|users?/(?:all|list)|all_?users|export|backup|wipe|secret|private|sensitive|grant|promote|debug|logs\b|console|ban\b|create_?user|update_?user|edit_?user",
    re.IGNORECASE,
)
_LOGIN_PATH: Final = re.compile(
    r"login|sign|register|logout|forgot|subscribe|callback|webhook|health|static|public|search|index",
    re.IGNORECASE,
)
_MUTATES: Final = re.compile(
    r"\.delete\(|DELETE\s+FROM|DROP\s+TABLE|UPDATE\s+\w+\s+SET|\.remove\(|os\.remove|shutil\.rmtree|\.drop\(|\.commit\(\)|\.pop\(|\bdel \w+\[|os\.system|subprocess|\.unlink\(",
    re.IGNORECASE,
)
_ROOT_TESTS: Final = re.compile(r"geteuid|getuid")


def _routes(subject: Subject) -> Iterator[tuple[Scope, FunctionNode, str, str]]:
    """Give each route with its path and its methods."""
    for scope in subject.facts.scopes:
        node = scope.node
        if not scope.is_route or not isinstance(node, FunctionNode):
            continue
        path, methods = scope.name, ""
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                if decorator.args and isinstance(decorator.args[0], ast.Constant):
                    path += f" {decorator.args[0].value!s}"
                methods += subject.tree.text(decorator)
            methods += " " + subject.tree.text(decorator)
        yield scope, node, path, methods


def missing_controls(subject: Subject) -> Iterator[Hit]:
    """Sensitive routes where nobody asks who it is, or whether he may."""
    text = subject.source.text
    asks_who = bool(_ASKS_WHO.search(text))
    for _scope, node, path, methods in _routes(subject):
        if not _SENSITIVE_PATH.search(path) or _LOGIN_PATH.search(path):
            continue
        body = subject.tree.text(node)
        destructive = bool(_MUTATES.search(body)) or bool(re.search(r"DELETE|delete\(", methods))
        named = bool(
            re.search(
                r"admin|delete|shutdown|reset|transfer|withdraw|wipe|drop|promote|grant|internal|secret|private|sensitive|all_?users|users/(?:all|list)|backup|ban\b",
                path,
                re.IGNORECASE,
            )
        )
        if not asks_who and (named or destructive):
            yield subject.hit("missing_authentication", node)
        elif (
            asks_who
            and named
            and destructive
            and not _ASKS_MAY.search(body + " ".join(subject.tree.text(d) for d in node.decorator_list))
            and re.search(
                r"login_required|current_user|session|is_authenticated|jwt_required|request\.user",
                body + methods,
            )
        ):
            yield subject.hit("missing_authorisation", node)
    if asks_who or subject.facts.imports_any("flask", "django", "fastapi"):
        return
    yield from _servers(subject)


def _servers(subject: Subject) -> Iterator[Hit]:
    """Commands that a plain socket server takes from anyone."""
    for call in subject.facts.calls:
        if call.name in {
            "os.system",
            "subprocess.run",
            "subprocess.Popen",
            "subprocess.check_output",
            "subprocess.call",
            "exec",
            "eval",
        } and any(taint.kind.name == "NETWORK" for value in call.args for taint in value.taints):
            if not re.search(r"auth|passw|token|login", subject.source.text, re.IGNORECASE):
                yield subject.hit("missing_authentication", call.node)


def records(subject: Subject) -> Iterator[Hit]:
    """Passwords and records of others that anyone may set."""
    for _scope, node, path, methods in _routes(subject):
        body = subject.tree.text(node)
        if re.search(
            r"(?:change|reset|update|set|new)[_-]?pass(?:word)?|password[_/-](?:change|reset|update)",
            path,
            re.IGNORECASE,
        ):
            if re.search(r"password", body) and not re.search(
                r"old_|current_pass|check_password|verify|token|otp|code|authenticate|check_password_hash|bcrypt\.checkpw|confirm_old|existing",
                body,
                re.IGNORECASE,
            ):
                yield subject.hit("password_unverified", node)
        by_get = (re.search(r"\.route\(", methods) and not re.search(r"methods=", methods)) or re.search(
            r"\.get\(", methods
        )
        if (
            by_get
            and re.search(r"delete|remove|transfer|update|change|unsubscribe", path, re.IGNORECASE)
            and re.search(r"request\.args|<", body + path)
            and _MUTATES.search(body)
            and re.search(r"session|current_user|login_required|cookies", body + methods)
        ):
            yield subject.hit("state_change_by_get", node)
        elif (
            re.search(r"POST|\.post\(", methods)
            and re.search(
                r"session\[|session\.get|current_user|login_required|request\.cookies", body + methods
            )
            and re.search(
                r"transfer|delete|change|update|email|password|payment|profile|settings|withdraw|purchase",
                path,
                re.IGNORECASE,
            )
            and not re.search(
                r"csrf|CSRF|FlaskForm|validate_on_submit|X-Requested-With|jwt|Bearer", subject.source.text
            )
            and subject.facts.imports_any("flask")
        ):
            yield subject.hit("csrf_missing", node)


def logins(subject: Subject) -> Iterator[Hit]:
    """Logins that go on with the session that was there before."""
    text = subject.source.text
    # Flask's own session is a signed cookie: there is no id to plant.
    if subject.facts.imports_any("flask") and not subject.facts.imports_any("flask_session"):
        return
    if re.search(
        r"session\.(?:clear|regenerate|cycle_key|flush|pop)|login_user|(?<!def )login\(request|session_protection|cycle_key|session\.invalidate",
        text,
    ):
        return
    for _scope, node, path, _methods in _routes(subject):
        if not re.search(r"log_?in|sign_?in|auth", path, re.IGNORECASE):
            continue
        for store in subject.facts.stores:
            if (
                store.scope.node is node
                and isinstance(store.target, ast.Subscript)
                and re.search(r"(?:^|\.)session$", subject.tree.text(store.target.value))
                and re.search(r"user|logged|auth|uid|id$", store.key.string, re.IGNORECASE)
            ):
                yield subject.hit("session_kept", store.node)
                break


def privileges(subject: Subject) -> Iterator[Hit]:
    """More rights than the work needs."""
    text = subject.source.text
    for call in subject.facts.calls:
        if call.name in {
            "os.setuid",
            "os.seteuid",
            "os.setgid",
            "os.setegid",
            "os.setreuid",
            "os.setresuid",
        } and any(value.const == 0 for value in call.args):
            yield subject.hit("too_much_privilege", call.node)
        elif call.name in {
            "os.system",
            "os.popen",
            "subprocess.run",
            "subprocess.call",
            "subprocess.Popen",
            "subprocess.check_call",
            "subprocess.check_output",
        }:
            words = (
                " ".join(item.string for item in call.arg(0).items)
                or call.arg(0).string
                or (call.arg(0).text or "")
            )
            if re.match(r"\s*(?:sudo|su\s+-c|doas)\b", words) or re.search(
                r"docker run.*--privileged", words
            ):
                yield subject.hit("too_much_privilege", call.node)
        elif (call.name == "os.chroot" and not re.search(r"os\.chdir", text)) or (
            call.arg(-1, "user").string == "root" and call.name.startswith(("subprocess.", "docker."))
        ):
            yield subject.hit("too_much_privilege", call.node)
    raised = re.search(r"(?:raise|elevate|gain|escalate)_?privileges?\(|acquire_root", text)
    dropped = re.search(r"(?:lower|drop|release|restore|revoke)_?privileges?\(", text)
    if raised:
        for node in subject.tree.all(ast.FunctionDef):
            body = subject.tree.text(node)
            if re.search(r"(?:raise|elevate|gain|escalate)_?privileges?\(", body[body.find(":") :]) and not (
                dropped and re.search(r"finally", body)
            ):
                yield subject.hit("privilege_kept", node)


def sharing(subject: Subject) -> Iterator[Hit]:
    """A user's data where other users' requests meet it."""
    if not subject.facts.imports_any(
        "flask", "django", "fastapi", "tornado", "http.server", "aiohttp", "bottle"
    ):
        return
    for store in subject.facts.stores:
        scope = store.scope
        if not scope.is_route or not isinstance(scope.node, FunctionNode):
            continue
        taints = [taint for taint in store.value.taints if taint.kind.name in {"HTTP", "UPLOAD"}]
        if isinstance(store.target, ast.Name):
            shared = any(
                isinstance(node, ast.Global) and store.target.id in node.names
                for node in ast.walk(scope.node)
            )
            if shared and (
                taints or re.search(r"user|session|account|current|token", store.target.id, re.IGNORECASE)
            ):
                yield subject.hit("shared_between_sessions", store.node)
        elif (
            isinstance(store.target, ast.Attribute)
            and taints
            and isinstance(store.target.value, ast.Name)
            and (store.target.value.id in ("cls", scope.class_name))
        ):
            yield subject.hit("shared_between_sessions", store.node)


def steps(subject: Subject) -> Iterator[Hit]:
    """States that are kept and never asked for."""
    for node in subject.tree.all(ast.ClassDef):
        stored: dict[str, ast.AST] = {}
        loaded: set[str] = set()
        for part in ast.walk(node):
            if (
                isinstance(part, ast.Attribute)
                and isinstance(part.value, ast.Name)
                and part.value.id == "self"
            ):
                if isinstance(part.ctx, ast.Store):
                    holder = subject.tree.parents.get(part)
                    if (
                        isinstance(holder, ast.Assign)
                        and isinstance(holder.value, ast.Constant)
                        and isinstance(holder.value.value, bool)
                    ):
                        stored.setdefault(part.attr, holder)
                else:
                    loaded.add(part.attr)
        outside = {part.attr for part in subject.tree.all(ast.Attribute) if isinstance(part.ctx, ast.Load)}
        for name, place in stored.items():
            if (
                name not in loaded
                and name not in outside
                and re.search(
                    r"authenticated|logged|verified|paid|approved|confirmed|checked_out|authori[sz]ed|shipped",
                    name,
                    re.IGNORECASE,
                )
            ):
                yield subject.hit("workflow_unchecked", place)
    for _scope, route, path, _methods in _routes(subject):
        body = subject.tree.text(route)
        if (
            re.search(r"confirm|complete|finali[sz]e|ship\b|place_?order|checkout", path, re.IGNORECASE)
            and re.search(r"'?status'?\]?\s*=|\.status\s*=|paid|shipped|UPDATE", body)
            and not re.search(r"if .*(?:paid|status|state|verified|step|session)", body)
        ):
            yield subject.hit("workflow_unchecked", route)


CHECKS: Final[tuple[Check, ...]] = (missing_controls, records, logins, privileges, sharing, steps)
