"""What review must not have to look for: rules of this code base, checked on its syntax trees.

A rule yields ``(line, what is wrong)`` for a module. ``EXEMPT`` says which module may break which
rule, and why; an exemption that is not used any more is itself a failure. ``SAMPLES`` shows for
every rule a piece of source that it must catch and one that it must let through.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LINE_COLUMNS_MAX = 100
FILE_LINES_MAX = 700

#: What each of our packages may import of ours.
MAY_IMPORT = {
    "dataflow": {"dataflow"},
    "state": {"state", "dataflow"},
    "taskmanager": {"taskmanager", "state", "dataflow"},
    "jobmanager": {"jobmanager", "taskmanager", "state", "dataflow"},
}
#: The upward edges, from a folder to modules, only inside a function: execute() starts the client,
#: the state processor reads what tasks have written, the test harness drives the operators that
#: tasks run, and a suite tests state backends.
UPWARD_EDGES = {
    "dataflow/datastream/": ("jobmanager.client",),
    "dataflow/state_processor/": ("state.processor",),
    "dataflow/testing/": ("taskmanager.operator_driver", "state"),
}

Finding = tuple[int, str]


@dataclass
class Module:
    """One source file; ``path`` is relative to the repository, with forward slashes."""

    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @cached_property
    def imports(self) -> list[tuple[str, ast.stmt, bool]]:
        """(dotted name, statement, inside a function) of everything imported, made absolute."""
        return list(self._imports(self.tree, in_function=False))

    def _imports(self, node: ast.AST, in_function: bool) -> Iterator[tuple[str, ast.stmt, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child, in_function
            elif isinstance(child, ast.ImportFrom):
                base = self._absolute(child)
                for alias in child.names:
                    yield f"{base}.{alias.name}", child, in_function
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from self._imports(child, in_function or function)

    def _absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        folders = self.path.split("/")[: -statement.level]
        return ".".join([*folders, *([statement.module] if statement.module else [])])

    @cached_property
    def names(self) -> dict[str, str]:
        """What imported names stand for: ``{"np": "numpy", "sleep": "time.sleep"}``."""
        bound = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    bound[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    bound[alias.asname or alias.name] = f"{self._absolute(node)}.{alias.name}"
        return bound

    def dotted(self, node: ast.AST) -> str | None:
        """``time.sleep`` for whatever this module calls that; a builtin is ``builtins.hash``."""
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else None
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.names:
            return self.names[node.id]
        return f"builtins.{node.id}" if hasattr(builtins, node.id) else None

    @cached_property
    def references(self) -> list[tuple[str, ast.expr, ast.Call | None]]:
        """(dotted name, node, the call if it is called) of every use of something imported.

        A clock that is handed on (``clock=time.monotonic``) is used as much as one that is called.
        """
        calls = {id(node.func): node for node in ast.walk(self.tree) if isinstance(node, ast.Call)}
        inner = {id(n.value) for n in ast.walk(self.tree) if isinstance(n, ast.Attribute)}
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
                name = self.dotted(node) if isinstance(node.ctx, ast.Load) else None
                if name:
                    found.append((name, node, calls.get(id(node))))
        return found


# ---------------------------------------------------------------------------------------- rules

Rule = Callable[[Module], Iterator[Finding]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def _is(name: str, *roots: str) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


@rule
def import_directions(module: Module) -> Iterator[Finding]:
    """dataflow <- state <- taskmanager <- jobmanager, also for types and inside functions."""
    package = module.path.partition("/")[0]
    for name, statement, in_function in module.imports:
        top = name.partition(".")[0]
        if top not in MAY_IMPORT or top in MAY_IMPORT[package]:
            continue
        upward = (up for folder, up in UPWARD_EDGES.items() if module.path.startswith(folder))
        allowed = (name for names in upward for name in names)
        if in_function and _is(name, *allowed):
            continue
        yield statement.lineno, f"{package} must not import {name}"


def _imports_of(*roots: str) -> Rule:
    def find(module: Module) -> Iterator[Finding]:
        for name, statement, _ in module.imports:
            if _is(name, *roots):
                yield statement.lineno, f"import of {name}"

    return find


RULES["ray_only_in_shells"] = _imports_of("ray")
#: Private or experimental, and (ray.data) readers of files that reach pickle: see SECURITY.md.
RULES["only_public_ray"] = _imports_of(
    "ray._private", "ray._raylet", "ray.data", "ray.experimental", "ray.util.queue", "ray.dag"
)
RULES["boto3_only_in_s3"] = _imports_of("boto3", "botocore", "s3transfer")


def _uses_of(*roots: str, but_not: tuple[str, ...] = ()) -> Rule:
    def find(module: Module) -> Iterator[Finding]:
        for name, node, _ in module.references:
            if _is(name, *roots) and not _is(name, *but_not):
                yield node.lineno, f"use of {name.removeprefix('builtins.')}"

    return find


#: A lock starts nothing and waits for nobody outside: state handed between threads may have one.
RULES["no_threads"] = _uses_of(
    *("threading", "queue", "concurrent.futures", "multiprocessing"),
    *("asyncio", "subprocess", "socket"),
    but_not=("threading.Lock", "threading.RLock", "concurrent.futures.Future"),
)
RULES["no_clock"] = _uses_of(
    "time",
    *(f"datetime.{kind}.{now}" for kind in ("datetime", "date") for now in ("now", "today")),
    "datetime.datetime.utcnow",
)
RULES["no_code_from_strings"] = _uses_of(
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "marshal"
)
RULES["no_print"] = _uses_of("builtins.print", "sys.stdout", "sys.__stdout__")
RULES["unpickle_in_one_module"] = _uses_of(
    *(
        f"{library}.{name}"
        for library in ("pickle", "cloudpickle", "ray.cloudpickle", "dill")
        for name in ("load", "loads", "Unpickler")
    ),
    "shelve",
)


@rule
def no_builtin_hash(module: Module) -> Iterator[Finding]:
    """It differs between processes (PYTHONHASHSEED); ``dataflow.common.keys`` has a stable one.

    Only a ``__hash__`` may use it: that serves the dicts of one process.
    """
    own = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__hash__"
        for inner in ast.walk(node)
    }
    for name, node, _ in module.references:
        if name == "builtins.hash" and id(node) not in own:
            yield node.lineno, "use of hash"


@rule
def no_randomness(module: Module) -> Iterator[Finding]:
    """A generator with a seed is deterministic, and naming its type is no use of it."""
    seeded = ("random.Random", "numpy.random.default_rng", "numpy.random.Generator")
    sources = ("random", "numpy.random", "secrets", "os.urandom", "uuid.uuid1", "uuid.uuid4")
    for name, node, call in module.references:
        if _is(name, *sources):
            unseeded = call is not None and not call.args and not call.keywords
            if name not in seeded or unseeded:
                yield node.lineno, f"use of {name}"


@rule
def no_leftovers(module: Module) -> Iterator[Finding]:
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    for token in tokens:
        mark = re.search(r"\b(FIXME|TODO|XXX|HACK)\b", token.string)
        if token.type in (tokenize.COMMENT, tokenize.STRING) and mark:
            yield token.start[0], f"{mark[1]} left behind"


@rule
def modules_say_what_they_are(module: Module) -> Iterator[Finding]:
    if module.tree.body and not ast.get_docstring(module.tree):
        yield 1, "the module has no docstring"


@rule
def public_classes_say_what_they_are(module: Module) -> Iterator[Finding]:
    for node in module.tree.body:
        public = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            yield node.lineno, f"the class {node.name} has no docstring"


@rule
def lines_fit(module: Module) -> Iterator[Finding]:
    for number, line in enumerate(module.source.splitlines(), 1):
        if len(line) > LINE_COLUMNS_MAX:
            yield number, f"{len(line)} columns, at most {LINE_COLUMNS_MAX}"


@rule
def files_fit(module: Module) -> Iterator[Finding]:
    lines = len(module.source.splitlines())
    if lines > FILE_LINES_MAX:
        yield lines, f"{lines} lines, at most {FILE_LINES_MAX}"


# ----------------------------------------------------------------------------------- exemptions

#: rule -> path -> why. What decides (task, alignment, coordinator, failover, ...) never stands
#: here: it gets the time and the random numbers from the shell around it.
EXEMPT: dict[str, dict[str, str]] = {
    "ray_only_in_shells": {
        "taskmanager/actor.py": "the TaskManager actor and its transport",
        "jobmanager/actor.py": "the JobManager actor",
        "jobmanager/cluster.py": "starts or joins Ray",
        "jobmanager/cli.py": "submits through Ray's Jobs API",
    },
    "boto3_only_in_s3": {"dataflow/filesystem/s3.py": "the S3 file system"},
    "no_threads": {
        "state/transfer.py": "moves parts of a snapshot side by side",
        "taskmanager/actor.py": "sends to other actors from a thread of its own",
        "taskmanager/operator_driver.py": "runs the coroutines of a tested operator to their end",
        "taskmanager/event_loop.py": "the thread that runs coroutines",
        "taskmanager/threaded.py": "the threads that step tasks and do their blocking I/O",
        "jobmanager/actor.py": "ends the actor after its last answer",
        "jobmanager/client.py": "waits for the job in the background of execute_async()",
        "jobmanager/cluster.py": "looks whether anybody listens before Ray tries for minutes",
        "jobmanager/job_manager.py": "the thread that feeds events to the JobMaster",
        "jobmanager/local.py": "the in-process cluster",
    },
    "no_clock": {
        "dataflow/filesystem/s3.py": "waits between attempts",
        "dataflow/state_processor/writer.py": "a savepoint says when it was written",
        "taskmanager/threaded.py": "tells tasks the time",
        "jobmanager/actor.py": "ends the actor after its last answer",
        "jobmanager/cli.py": "waits between two looks at a job",
        "jobmanager/cluster.py": "waits, up to a bound, for actors to come up",
        "jobmanager/job_manager.py": "tells the JobMaster the time",
        "jobmanager/progress.py": "limits how often the line is drawn",
    },
    "no_randomness": {
        "dataflow/filesystem/base.py": "names of temporary files",
        "dataflow/filesystem/s3.py": "jitter, and the mark of an upload",
        "jobmanager/cluster.py": "ids of new jobs",
        "jobmanager/local.py": "ids of new jobs",
        "jobmanager/client.py": "ids of requests",
        "jobmanager/job_manager.py": "hands the JobMaster its source of jitter",
    },
    "no_print": {
        "jobmanager/cli.py": "the command's output",
        "jobmanager/state_commands.py": "the output of `dataflow state`",
        "jobmanager/client.py": "what print() sinks have printed, at the program that runs the job",
    },
    "unpickle_in_one_module": {"dataflow/common/codec.py": "the module that unpickles"},
}


# --------------------------------------------------------------------------------- on our sources


def _modules() -> list[Module]:
    return [
        Module(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
        for package in MAY_IMPORT
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    ]


MODULES = _modules()


@pytest.mark.parametrize("name", RULES)
def test_our_sources_keep_the_rule(name: str) -> None:
    exempt = EXEMPT.get(name, {})
    broken = [
        f"{module.path}:{line}: {what}"
        for module in MODULES
        if module.path not in exempt
        for line, what in RULES[name](module)
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, paths in EXEMPT.items() for path in paths]
)
def test_an_exemption_is_still_needed(name: str, path: str) -> None:
    [module] = [module for module in MODULES if module.path == path]
    assert list(RULES[name](module)), f"{path} keeps the rule {name}: remove it from EXEMPT"


def test_all_four_packages_are_looked_at() -> None:
    assert {module.path.partition("/")[0] for module in MODULES} == set(MAY_IMPORT)


# Written so that this file does not hold what it looks for.
_FOREIGN = {
    "host of a package registry": re.compile(
        r"\b(pypi|npmjs|crates)[.](org|com|io)\b|pythonhosted[.]org|conda[.]anaconda[.]org"
        r"|\b(docker|ghcr|quay)[.]io\b|\bproxy[.]golang[.]org\b"
    ),
    "path of somebody's machine": re.compile(
        r"(?<![\w.~$}-])/(?:(?:work|root|Users)/|home/(?!ray\b)\w|tmp/\w/)"
    ),
}
_SKIPPED_FOLDERS = {"__pycache__", "build", "dist", "demo-output", "bench-results"}
_TEXT = {"", ".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".sh", ".json", ".html"}


def _foreign(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in _FOREIGN.items():
            if pattern.search(line):
                yield number, what


def _project_files() -> Iterator[Path]:
    for top in sorted(REPOSITORY.iterdir()):
        hidden = top.name.startswith(".") and top.name != ".ci"
        if hidden or top.name.endswith(".egg-info") or top.name in _SKIPPED_FOLDERS:
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            inside = set(path.relative_to(REPOSITORY).parts)
            if path.is_file() and path.suffix in _TEXT and not inside & _SKIPPED_FOLDERS:
                yield path


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    broken = [
        f"{path.relative_to(REPOSITORY)}:{line}: {what}"
        for path in _project_files()
        for line, what in _foreign(path.read_text(encoding="utf-8"))
    ]
    assert not broken, "\n" + "\n".join(broken)


# ------------------------------------------------------------------------- the rules themselves

_DOC = '"""Text."""\n'
#: rule, path, source, whether the rule must object
SAMPLES: list[tuple[str, str, str, bool]] = [
    ("import_directions", "dataflow/x.py", "import state", True),
    ("import_directions", "dataflow/x.py", "from taskmanager.task import Task", True),
    ("import_directions", "state/x.py", "def f():\n    import taskmanager.task", True),
    ("import_directions", "taskmanager/x.py", "from jobmanager import client", True),
    ("import_directions", "state/x.py", "if TYPE_CHECKING:\n    import jobmanager", True),
    ("import_directions", "jobmanager/x.py", "import state, taskmanager, dataflow", False),
    ("import_directions", "state/x.py", "from . import y\nfrom .y import z", False),
    ("import_directions", "dataflow/graph/x.py", "from ..common import keys", False),
    ("import_directions", "dataflow/x.py", "import statement", False),
    # execute() may reach the client: from its folder, and only when it is called
    ("import_directions", "dataflow/datastream/x.py", "from jobmanager.client import run", True),
    (
        "import_directions",
        "dataflow/datastream/x.py",
        "def execute():\n    from jobmanager.client import run",
        False,
    ),
    (
        "import_directions",
        "dataflow/datastream/x.py",
        "def execute():\n    from jobmanager import client",
        False,
    ),
    (
        "import_directions",
        "dataflow/datastream/x.py",
        "def execute():\n    from jobmanager import job_master",
        True,
    ),
    (
        "import_directions",
        "dataflow/common/x.py",
        "def execute():\n    from jobmanager.client import run",
        True,
    ),
    (
        "import_directions",
        "dataflow/testing/x.py",
        "def of():\n    from taskmanager.operator_driver import OperatorDriver",
        False,
    ),
    (
        "import_directions",
        "dataflow/testing/x.py",
        "from taskmanager.operator_driver import OperatorDriver",
        True,
    ),
    (
        "import_directions",
        "dataflow/testing/x.py",
        "def of():\n    from jobmanager.client import run",
        True,
    ),
    (
        "import_directions",
        "dataflow/state_processor/x.py",
        "def read():\n    from state.processor.reading import open_state",
        False,
    ),
    (
        "import_directions",
        "dataflow/state_processor/x.py",
        "from state.processor.reading import open_state",
        True,
    ),
    (
        "import_directions",
        "dataflow/state_processor/x.py",
        "def read():\n    from state.snapshot import TaskSnapshot",
        True,
    ),
    ("ray_only_in_shells", "state/x.py", "def f():\n    import ray.util", True),
    ("ray_only_in_shells", "state/x.py", "from ray import remote", True),
    ("ray_only_in_shells", "state/x.py", "import rayon", False),
    ("only_public_ray", "state/x.py", "from ray._private import state", True),
    ("only_public_ray", "state/x.py", "import ray\nfrom ray.exceptions import RayError", False),
    ("boto3_only_in_s3", "state/x.py", "from botocore.config import Config", True),
    ("boto3_only_in_s3", "state/x.py", "import boto3", True),
    ("no_threads", "state/x.py", "import threading\nthreading.Thread(target=f)", True),
    ("no_threads", "state/x.py", "from queue import Queue\nq = Queue()", True),
    ("no_threads", "state/x.py", "from concurrent import futures as f\nf.wait(x)", True),
    ("no_threads", "state/x.py", "from threading import Lock\nlock = Lock()", False),
    ("no_clock", "state/x.py", "import time\nt = time.time()", True),
    ("no_clock", "state/x.py", "import time as clock\nclock.sleep(1)", True),
    ("no_clock", "state/x.py", "from time import monotonic as m\ndef f(now=m): ...", True),
    ("no_clock", "state/x.py", "import datetime as d\nd.datetime.now()", True),
    ("no_clock", "state/x.py", "from datetime import datetime\nx = datetime.utcnow()", True),
    ("no_clock", "state/x.py", "from datetime import date\nx = date.today()", True),
    ("no_clock", "state/x.py", "import datetime\nx = datetime.datetime(2020, 1, 1)", False),
    ("no_clock", "state/x.py", "def f(time):\n    return time.sleep", False),
    ("no_builtin_hash", "state/x.py", "x = hash(key)", True),
    ("no_builtin_hash", "state/x.py", "x = map(hash, keys)", True),
    ("no_builtin_hash", "state/x.py", "from dataflow.keys import hash\nx = hash(1)", False),
    ("no_builtin_hash", "state/x.py", "x = table.hash(key)", False),
    ("no_builtin_hash", "state/x.py", "def __hash__(self):\n    return hash(self.x)", False),
    ("no_builtin_hash", "state/x.py", "def key_group(self):\n    return hash(self.x)", True),
    ("no_code_from_strings", "state/x.py", "eval('1')", True),
    ("no_code_from_strings", "state/x.py", "exec(code, {})", True),
    ("no_code_from_strings", "state/x.py", "import re\nre.compile('a')", False),
    ("no_print", "state/x.py", "print('x')", True),
    ("no_print", "state/x.py", "import sys\nsys.stdout.write('x')", True),
    ("no_print", "state/x.py", "stream.print()", False),
    ("unpickle_in_one_module", "state/x.py", "import pickle\npickle.loads(b'')", True),
    ("unpickle_in_one_module", "state/x.py", "from cloudpickle import loads as l\nl(b'')", True),
    ("unpickle_in_one_module", "state/x.py", "import pickle as p\np.Unpickler(f)", True),
    ("unpickle_in_one_module", "state/x.py", "from ray import cloudpickle as c\nc.load(f)", True),
    ("unpickle_in_one_module", "state/x.py", "import pickle, json\njson.loads('1')", False),
    ("no_randomness", "state/x.py", "import random\nrandom.random()", True),
    ("no_randomness", "state/x.py", "import random\nrng = random.Random()", True),
    ("no_randomness", "state/x.py", "from random import shuffle\nshuffle(x)", True),
    ("no_randomness", "state/x.py", "import numpy as np\nnp.random.shuffle(x)", True),
    ("no_randomness", "state/x.py", "import uuid\nuuid.uuid4()", True),
    ("no_randomness", "state/x.py", "import os\nos.urandom(8)", True),
    ("no_randomness", "state/x.py", "import random\nrng: random.Random = random.Random(1)", False),
    ("no_randomness", "state/x.py", "import uuid\nuuid.UUID(int=1)", False),
    ("no_leftovers", "state/x.py", "x = 1  # TODO: two", True),
    ("no_leftovers", "state/x.py", 'def f():\n    """FIXME"""', True),
    ("no_leftovers", "state/x.py", "TODOS = 1  # done", False),
    ("modules_say_what_they_are", "state/x.py", "x = 1", True),
    ("modules_say_what_they_are", "state/x.py", _DOC + "x = 1", False),
    ("modules_say_what_they_are", "state/__init__.py", "", False),
    ("public_classes_say_what_they_are", "state/x.py", "class A: ...", True),
    ("public_classes_say_what_they_are", "state/x.py", "class _A: ...", False),
    ("public_classes_say_what_they_are", "state/x.py", f"class A:\n    {_DOC}", False),
    ("lines_fit", "state/x.py", "#" * 101, True),
    ("lines_fit", "state/x.py", "#" * 100, False),
    ("files_fit", "state/x.py", "\n" * 701, True),
    ("files_fit", "state/x.py", "\n" * 700, False),
]


@pytest.mark.parametrize(("name", "path", "source", "objects"), SAMPLES)
def test_a_rule_catches_what_it_should_and_nothing_else(
    name: str, path: str, source: str, objects: bool
) -> None:
    assert bool(list(RULES[name](Module(path, source)))) == objects


def test_every_rule_has_a_sample_that_it_catches() -> None:
    assert {name for name, _, _, objects in SAMPLES if objects} == set(RULES)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("https://py" + "pi.org/simple", True),
        ("files.python" + "hosted.org", True),
        ("image: docker" + ".io/rayproject/ray", True),
        ("cd /wo" + "rk/main", True),
        ("open('/ro" + "ot/x')", True),
        ("open('/ho" + "me/ann/x')", True),
        ("/tm" + "p/x/y", True),
        ("from PyPI, into /home/ray of the image; mountPath: /tmp", False),
        ("https://example.org/work/x and ./work/x and file:///tmp/checkpoints", False),
    ],
)
def test_foreign_names_are_seen(text: str, objects: bool) -> None:
    assert bool(list(_foreign(text))) == objects
