"""Every rewrite: before and after, nothing on what it has rewritten, comments and layout kept, behaviour kept."""

from __future__ import annotations

import pytest

from services.tools.code.catalogue import REPAIRABLE
from services.tools.code.model import SourceFile
from services.tools.code.repair.model import PREFIX, DeclinedError, Place
from services.tools.code.repair.rewrites import REWRITES
from services.tools.code.repair.rewrites.parsing import DefusedXml
from services.tools.code.repair.tree import Tree
from tests.fakes.rewriting import FLASK, engines, repaired, scan

# Rewrite, code before, the part of it that goes, what comes in its place, and a module that is imported for it.
CASES = [
    (
        "parameterised_query",
        (
            "import sqlite3\n\n\ndef f(db, name):\n    c = sqlite3.connect(db)\n"
            "    return c.execute(f\"SELECT * FROM t WHERE n = '{name}'\").fetchall()  # all\n"
        ),
        "f\"SELECT * FROM t WHERE n = '{name}'\"",
        '"SELECT * FROM t WHERE n = ?", (name,)',
    ),
    (
        "parameterised_query",
        (
            "import psycopg2\n\n\ndef f(cur, name, age):\n"
            "    query = \"SELECT 5 %% 2 FROM t WHERE n LIKE '%%%s%%' AND a > %d\" % (name, age)\n"
            "    cur.execute(query)\n"
        ),
        None,
        (
            '    query = "SELECT 5 %% 2 FROM t WHERE n LIKE %s AND a > %s"\n'
            '    cur.execute(query, (f"%{name}%", age))\n'
        ),
    ),
    (
        "parameterised_query",
        (
            "import sqlite3\n\n\ndef f(c, a, b):\n    c = sqlite3.connect(a).cursor()\n"
            '    c.execute("INSERT INTO t VALUES (\'" + a + "\', " + str(b) + ")")\n'
        ),
        '"INSERT INTO t VALUES (\'" + a + "\', " + str(b) + ")"',
        '"INSERT INTO t VALUES (?, ?)", (a, b)',
    ),
    (
        "parameterised_query",
        (
            'import sqlite3\n\n\ndef f(x):\n    c = sqlite3.connect("a").cursor()\n'
            '    c.execute("""\n        SELECT *\n        FROM t WHERE n = {}\n    """.format(x))\n'
        ),
        'n = {}\n    """.format(x))',
        'n = ?\n    """, (x,))',
    ),
    (
        "parameterised_query",
        (
            'import sqlite3\n\n\ndef f(n):\n    c = sqlite3.connect("a").cursor()\n    c.execute(\n'
            '        "SELECT * FROM t "  # first\n        f"WHERE n = \'{n}\'"\n    )\n'
        ),
        "f\"WHERE n = '{n}'\"",
        '"WHERE n = ?", (n,)',
    ),
    (
        "subprocess_shell_false",
        (
            "import subprocess\n\n\ndef f(path):\n    return subprocess.check_output(\n"
            '        f"ls -l {path}",\n        shell=True,  # why\n        text=True,\n    )\n'
        ),
        'f"ls -l {path}",\n        shell=True,  # why\n',
        '["ls", "-l", str(path)],\n',
    ),
    (
        "os_system_list",
        'import os\nimport sys\n\nos.system("ping -c 1 " + sys.argv[1])\n',
        'os.system("ping -c 1 " + sys.argv[1])',
        'subprocess.run(["ping", "-c", "1", sys.argv[1]], check=False)',
    ),
    (
        "os_system_list",
        'import os\n\n\ndef f(host):\n    return os.popen(f"host {host}").read()\n',
        'os.popen(f"host {host}").read()',
        'subprocess.run(["host", str(host)], check=False, stdout=subprocess.PIPE, text=True).stdout',
    ),
    (
        "yaml_safe_load",
        "import yaml\n\n\ndef f(text):\n    return yaml.load(text, Loader=yaml.Loader)\n",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.safe_load(text)",
    ),
    (
        "yaml_safe_load",
        "from yaml import load, Loader\n\n\ndef f(text):\n    return load(text, Loader)\n",
        "return load(text, Loader)",
        "return yaml.safe_load(text)",
    ),
    (
        "literal_eval",
        FLASK + '\n@app.route("/")\ndef f():\n    return {"x": len(eval(request.args["x"]))}\n',
        "eval(",
        "ast.literal_eval(",
    ),
    (
        "secrets",
        "import random\n\n\ndef make_token():\n    token = random.randint(1, 6)\n    return token\n",
        "random.randint(1, 6)",
        "secrets.SystemRandom().randint(1, 6)",
    ),
    (
        "secrets",
        'import random\n\n\ndef password():\n    return "".join(random.choice("abc") for _ in range(12))\n',
        "random.choice(",
        "secrets.choice(",
    ),
    (
        "sha256",
        "import hashlib\n\n\ndef f(data):\n    return hashlib.md5(data).hexdigest()\n",
        "hashlib.md5(",
        "hashlib.sha256(",
    ),
    (
        "tls_verify",
        "import requests\n\n\ndef f(url):\n    return requests.get(url, verify=False, timeout=5)\n",
        "url, verify=False, timeout=5",
        "url, timeout=5",
    ),
    (
        "tls_context",
        "import ssl\n\n\ndef f():\n    return ssl._create_unverified_context()\n",
        "ssl._create_unverified_context()",
        "ssl.create_default_context()",
    ),
    (
        "tls_context",
        (
            "import ssl\n\n\ndef f():\n    c = ssl.create_default_context()\n    c.check_hostname = False  # a\n"
            "    c.verify_mode = ssl.CERT_NONE\n    return c\n"
        ),
        None,
        "    c.check_hostname = True  # a\n    c.verify_mode = ssl.CERT_REQUIRED\n",
    ),
    (
        "ssh_host_key",
        (
            "import paramiko\n\n\ndef f():\n    c = paramiko.SSHClient()\n"
            "    c.set_missing_host_key_policy(paramiko.AutoAddPolicy())\n"
        ),
        "paramiko.AutoAddPolicy()",
        "paramiko.RejectPolicy()",
    ),
    (
        "jwt_verify",
        (
            "import jwt\n\n\ndef f(t, key):\n"
            '    return jwt.decode(t, key, algorithms=["HS256"], options={"verify_signature": False})\n'
        ),
        '"verify_signature": False',
        '"verify_signature": True',
    ),
    (
        "named_temporary_file",
        'import tempfile\n\n\ndef f():\n    return tempfile.mktemp(".txt", prefix="a")\n',
        'tempfile.mktemp(".txt", prefix="a")',
        'tempfile.NamedTemporaryFile(suffix=".txt", prefix="a", delete=False).name',
    ),
    (
        "owner_only",
        "import os\n\n\ndef f(path):\n    os.chmod(path, 0o777)\n",
        "0o777",
        "0o700",
    ),
    ("debug_off", FLASK + "\napp.run(debug=True)\n", "debug=True", "debug=False"),
    (
        "autoescape",
        "import jinja2\n\n\ndef f():\n    return jinja2.Environment()\n",
        "jinja2.Environment()",
        "jinja2.Environment(autoescape=True)",
    ),
    (
        "cookie_flags",
        FLASK + '\n@app.route("/")\ndef f():\n    r = make_response("")\n'
        '    r.set_cookie(\n        "session",\n        "x",\n        secure=False,  # later\n    )\n    return r\n',
        "        secure=False,  # later\n",
        '        secure=True,  # later\n        httponly=True,\n        samesite="Lax",\n',
    ),
    (
        "password_from_environment",
        '"""Doc."""\n\nDB_PASSWORD = "hunter2secret"  # ours\n',
        '"hunter2secret"',
        'os.environ["DB_PASSWORD"]',
    ),
]


@pytest.mark.parametrize(("name", "before", "old", "new"), CASES, ids=lambda value: None)
def test_a_rewrite_changes_its_place_and_nothing_else(
    name: str, before: str, old: str | None, new: str
) -> None:
    after, done, report = repaired(before)
    names = {made.proposal.rewrite for made in done.standing}
    assert PREFIX + name in names, (done.left, [each.rule for each in report.findings])
    compile(after, "main.py", "exec")
    imports = {line for line in after.splitlines() if line.startswith("import ")} - set(before.splitlines())
    plain = "".join(line for line in after.splitlines(keepends=True) if line.strip() not in imports)
    if old is None:
        assert new in plain
    else:
        assert plain == before.replace(old, new)
    assert len(scan([SourceFile("main.py", after)]).findings) < len(report.findings)
    again, _, _ = repaired(after)
    assert again == after


def test_the_local_interface_is_bound() -> None:
    after, done, report = repaired(
        'import socket\n\n\ndef f():\n    s = socket.socket()\n    s.bind(("0.0.0.0", 80))\n    return s\n'
    )
    if any(each.rule == "kala.python.all_interfaces" for each in report.findings):
        assert 's.bind(("127.0.0.1", 80))' in after, done.left


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            'import sqlite3\n\n\ndef f(db, t):\n    sqlite3.connect(db).execute(f"SELECT * FROM {t}")\n',
            "table",
        ),
        (
            (
                "import sqlite3\n\n\ndef f(db, ids):\n    c = sqlite3.connect(db)\n"
                '    c.execute(f"SELECT * FROM t WHERE id IN ({ids})")\n'
            ),
            "whole list",
        ),
        (
            (
                "import sqlite3\n\n\ndef f(db, row):\n    c = sqlite3.connect(db)\n"
                '    c.execute(f"INSERT INTO t VALUES ({row})")\n'
            ),
            "whole list",
        ),
        (
            (
                "import sqlite3\n\n\ndef f(db, t):\n    c = sqlite3.connect(db)\n"
                '    c.execute(f"SELECT * FROM u WHERE a = {t}.id")\n'
            ),
            "longer name",
        ),
        (
            (
                "import sqlite3\n\n\ndef f(db, n):\n    c = sqlite3.connect(db)\n"
                '    c.execute(f"SELECT * FROM u WHERE a = 1 AND {n}")\n'
            ),
            "no placeholder",
        ),
        ('def f(cur, n):\n    cur.execute(f"SELECT * FROM t WHERE n = {n}")\n', "database"),
        (
            (
                "import sqlite3\n\n\ndef f(db, n):\n    c = sqlite3.connect(db)\n"
                '    q = f"SELECT * FROM t WHERE n = {n}"\n    print(q)\n    c.execute(q)\n'
            ),
            "elsewhere",
        ),
        (
            (
                "import sqlite3\n\n\ndef f(db, n):\n    c = sqlite3.connect(db)\n"
                '    c.execute(f"SELECT * FROM t WHERE n = {n:>3}")\n'
            ),
            "formatted",
        ),
        ('import subprocess\n\n\ndef f(x):\n    subprocess.run(f"cat {x} | sort", shell=True)\n', "shell"),
        ('import subprocess\n\n\ndef f(x):\n    subprocess.run(f"{x} -l", shell=True)\n', "which program"),
        ('import subprocess\n\n\ndef f(x):\n    subprocess.run(f"cd {x}", shell=True)\n', "own"),
        ("import subprocess\n\n\ndef f(x):\n    subprocess.run(x, shell=True)\n", "not put together"),
        ('import os\n\n\ndef f(x):\n    code = os.system("ls " + x)\n    return code\n', "result"),
        (
            "import random\n\nrandom.seed(1)\n\n\ndef make_token():\n    token = random.randint(1, 6)\n    return token\n",
            "seeds",
        ),
        ("import hashlib\n\n\ndef etag(data):\n    return hashlib.md5(data).hexdigest()\n", "protocol"),
        ("import jwt\n\n\ndef f(t):\n    return jwt.decode(t, verify=False)\n", "no key"),
        (
            FLASK + "import pickle\n\n@app.route('/')\ndef f():\n    return pickle.loads(request.data)\n",
            "JSON",
        ),
        (FLASK + "\n@app.route('/')\ndef f():\n    exec(request.data)\n    return ''\n", "literals"),
    ],
)
def test_what_would_not_be_safe_is_left_with_its_reason(code: str, reason: str) -> None:
    after, done, report = repaired(code)
    if not report.findings:
        pytest.skip("the scanner has nothing against it")
    assert after == code, [made.proposal.rewrite for made in done.standing]
    assert any(reason in each for each in done.left.values()), done.left


@pytest.mark.parametrize(
    "head", ["", "#!/usr/bin/python3\n# Copyright.\n", '"""Doc."""\n', "from __future__ import annotations\n"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_imports_come_where_imports_may(head: str, newline: str) -> None:
    code = (head + "def f(x):\n    import os\n    os.system('ls ' + x)\n").replace("\n", newline)
    after, done, _ = repaired(code)
    assert done.standing, done.left
    compile(after, "main.py", "exec")
    assert after.startswith(head.replace("\n", newline))
    assert f"import subprocess{newline}" in after
    assert after.count("\n") == after.count(newline)


def test_names_beyond_ascii_keep_their_places() -> None:
    code = (
        "import yaml\n\n\ndef größe(text):\n    ü = 'äöü'; return yaml.load(text, Loader=yaml.Loader)  # ß\n"
    )
    after, _, _ = repaired(code)
    assert after == code.replace("yaml.load(text, Loader=yaml.Loader)", "yaml.safe_load(text)")


def test_a_name_that_is_taken_is_not_shadowed() -> None:
    code = "import os\n\nsubprocess = 1\n\n\ndef f(x):\n    os.system('ls ' + x)\n"
    after, done, _ = repaired(code)
    assert after == code
    assert any("in use" in reason for reason in done.left.values())


def test_xml_goes_through_defusedxml_only_where_that_is_in_use() -> None:
    code = "import xml.etree.ElementTree as ET\nroot = ET.fromstring(text)\n"
    place = Place(code.index("ET.from"), len(code))
    with pytest.raises(DeclinedError, match="dependency"):
        DefusedXml().propose(Tree.parse(code), place)
    place = Place(place.start + 18, place.end + 18)
    proposal = DefusedXml().propose(Tree.parse("import defusedxml\n" + code), place)
    assert proposal is not None
    assert proposal.imports == {"defusedxml.ElementTree"}
    assert [change.text for change in proposal.changes] == ["defusedxml.ElementTree.fromstring(text)"]


def test_every_repairable_rule_has_a_rewrite_and_can_be_found() -> None:
    rules = {rule for rewrite in REWRITES for rule in rewrite.rules}
    assert rules == REPAIRABLE
    known = {rule.id for engine in engines() for rule in engine.rules}
    for rule in rules - known:
        assert rule.startswith("bandit.")
    assert len({rewrite.id for rewrite in REWRITES}) == len(REWRITES)
