"""Every public object says what goes in and out, with shapes, and what it raises.

Public are the names a module lists in `__all__`, and the methods and properties of the classes among them that have no
leading underscore.  A method that overrides one of a base class in this package may leave its docstring to the base.
Read from the source, so nothing is imported and what a decorator hides is still seen.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "aid_control").rglob("*.py"))

ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray|Array)\b")
SHAPE = re.compile(
    r"\((?:[A-Za-z0-9_'*+\-/ ]|\.\.\.)*,[^()]*\)"  # (B, d), (n,), (..., m)
    r"|\blike\b|\bscalars?\b|\bnumbers?\b|\bany shape|\bshape|\ba row\b|\bper row\b|\bas (?:in )?`|\bsame\b"
)
ELSEWHERE = re.compile(r"\bas (?:in |of |for )?`|\b[Ss]ee `|\bof `\w")  # "arguments as `other`"
NOT_AN_ERROR = {"NotImplementedError", "StopIteration", "SystemExit"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Public:
    """A public function, method or class; ``above``: the docstrings of the methods it overrides."""

    module: str
    name: str
    node: Function | ast.ClassDef
    errors: frozenset[str]
    above: str = ""

    def __str__(self) -> str:
        return f"{self.module}:{self.node.lineno} {self.name}"


def exported(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def raised(node: ast.AST, private: dict[str, ast.AST], seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names of the exceptions that the body raises itself or through a private function of its module."""
    found: set[str] = set()
    if isinstance(node, ast.Try):
        caught = {n for h in node.handlers if h.type is not None for n in re.findall(r"\w+", ast.unparse(h.type))}
        inside = frozenset().union(*(raised(n, private, seen) for n in node.body)) - caught
        rest = [n for part in (node.handlers, node.orelse, node.finalbody) for n in part]
        return inside.union(*(raised(n, private, seen) for n in rest))
    for inner in ast.iter_child_nodes(node):
        if not isinstance(inner, ast.Lambda):  # is called somewhere else, perhaps where its errors are caught
            found |= raised(inner, private, seen)
    for inner in [node]:
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            call = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            name = ast.unparse(call).split(".")[-1]
            if name[:1].isupper():
                found.add(name)
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
            helper = inner.func.id
            if helper in private and helper not in seen:
                found |= raised(private[helper], private, seen | {helper})
    return frozenset(found - NOT_AN_ERROR)


def bases(tree: ast.Module) -> dict[str, list[str]]:
    return {
        node.name: [ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in MODULES}
CLASSES = {n.name: n for tree in TREES.values() for n in tree.body if isinstance(n, ast.ClassDef)}
BASES = {name: parents for tree in TREES.values() for name, parents in bases(tree).items()}


def documentation_above(cls: str, method: str) -> str:
    """What the base classes of this package say of a method."""
    found = []
    for parent in BASES.get(cls, []):
        node = CLASSES.get(parent)
        if node is None:
            continue
        found += [ast.get_docstring(n) or "" for n in node.body if isinstance(n, Function) and n.name == method]
        found.append(documentation_above(parent, method))
    return "\n".join(f for f in found if f)


def public_objects() -> list[Public]:
    found = []
    for module, tree in TREES.items():
        private = {n.name: n for n in tree.body if isinstance(n, Function) and n.name.startswith("_")}
        for node in tree.body:
            if not isinstance(node, Function | ast.ClassDef) or node.name not in exported(tree):
                continue
            if isinstance(node, Function):
                found.append(Public(module, node.name, node, raised(node, private)))
                continue
            start = [n for n in node.body if isinstance(n, Function) and n.name in {"__init__", "__post_init__"}]
            errors = frozenset().union(*(raised(n, private) for n in start)) if start else frozenset()
            found.append(Public(module, node.name, node, errors))
            for method in node.body:
                if not isinstance(method, Function) or method.name.startswith("_"):
                    continue
                above = documentation_above(node.name, method.name)
                if ast.get_docstring(method) is None and above:
                    continue
                found.append(Public(module, f"{node.name}.{method.name}", method, raised(method, private), above))
    return found


def parameters(node: Function | ast.ClassDef) -> dict[str, str]:
    """Name -> annotation of what a caller gives."""
    if isinstance(node, ast.ClassDef):
        init = [n for n in node.body if isinstance(n, Function) and n.name == "__init__"]
        if init:
            return parameters(init[0])
        if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            return {}
        return {
            n.target.id: ast.unparse(n.annotation)
            for n in node.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith("_")
        }
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {
        a.arg: ast.unparse(a.annotation) if a.annotation else ""
        for a in given
        if a.arg not in {"self", "cls"} and not a.arg.startswith("_")
    }


def described(doc: str, name: str) -> str | None:
    """The description of an argument or attribute, or None."""
    match = re.search(rf"^(\s+)`?\*?{name}`?(?: \([^)]*\))?(?:, \w+)*:(.*(?:\n\1\s+.*)*)", doc, re.M)
    return match.group(2) if match else None


def faults(item: Public) -> list[str]:
    doc = ast.get_docstring(item.node)
    if not doc:
        return ["no docstring"]
    found = []
    whole = re.split(r"^(?:Args|Raises|Attributes|Example)s?:", doc, flags=re.M)[0]
    by_signature = "->" in whole or "->" in item.above or bool(ELSEWHERE.search(whole))
    for name, annotation in parameters(item.node).items():
        text = described(doc, name) or described(item.above, name)
        if text is None:
            if not by_signature:
                found.append(f"argument {name} is not described")
        elif ARRAY.search(annotation) and "Callable" not in annotation and not SHAPE.search(text):
            found.append(f"argument {name} has no shape")
    if isinstance(item.node, Function):
        returns = ast.unparse(item.node.returns) if item.node.returns else ""
        if ARRAY.search(returns) and "Callable" not in returns:
            rest = re.sub(r"^Args:\n(?:[ \t]+.*\n?|\n(?=[ \t]))*", "", doc, flags=re.M)
            if not SHAPE.search(rest + item.above) and "->" not in rest:
                found.append("what it returns has no shape")
    section = re.search(r"^Raises:\n((?:[ \t]+.*\n?|\n(?=[ \t]))*)", doc, re.M)
    for error in sorted(item.errors):
        if not (section and re.search(rf"\b{error}\b", section.group(1))):
            found.append(f"{error} is raised and not listed")
    return found


OBJECTS = public_objects()


def test_the_reader_finds_the_objects():
    names = {o.name for o in OBJECTS}
    assert {"ControlProblem", "ControlProblem.drift", "rollout", "inpaint", "riccati"} & names
    assert len(OBJECTS) > 400


@pytest.mark.parametrize("module", sorted(TREES))
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"


@pytest.mark.parametrize("module", sorted({o.module for o in OBJECTS}))
def test_every_public_object_gives_shapes_and_errors(module):
    report = [f"{item}: {fault}" for item in OBJECTS if item.module == module for fault in faults(item)]
    assert not report, "\n" + "\n".join(report)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x: Tensor) -> Tensor:\n    pass", ["no docstring"]),
        ('def f(x: Tensor) -> Tensor:\n    """(B, d) -> (B,)."""', []),
        ('def f(x: Tensor) -> int:\n    """Counts."""', ["argument x is not described"]),
        (
            'def f(x: Tensor) -> int:\n    """Counts.\n\n    Args:\n        x: rows.\n    """',
            ["argument x has no shape"],
        ),
        ('def f(x: Tensor) -> int:\n    """Counts.\n\n    Args:\n        x: rows, (B, d).\n    """', []),
        ('def f() -> Tensor:\n    """A tensor."""', ["what it returns has no shape"]),
        ('def f() -> Tensor:\n    """A tensor.\n\n    Returns:\n        (B, d).\n    """', []),
        ('def f() -> int:\n    """One."""\n    raise ValueError("no")', ["ValueError is raised and not listed"]),
        ('def f() -> int:\n    "One.\\n\\nRaises:\\n    OSError: ever."\n    raise OSError()', []),
    ],
)
def test_the_rules_see_what_they_should(source, expected):
    node = ast.parse(source).body[0]
    assert faults(Public("m", "f", node, raised(node, {}))) == expected
