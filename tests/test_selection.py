"""What `make test` leaves to `make test-all`: nothing but combinations, and the tests marked slow."""

import ast
import importlib
import importlib.util
import types
from collections import defaultdict

import pytest

from tests import selection


@pytest.mark.parametrize(
    ("cases", "left"),
    [
        ([set()], []),
        ([{1}, {2}, {3}], []),
        ([{"a", 1}, {"a", 2}, {"b", 1}, {"b", 2}], [1, 2]),
        ([{"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"c", 1}, {"c", 2}], [1, 2, 5]),
        ([{"a", 1}, {"a", 1}], [1]),
    ],
)
def test_a_case_with_nothing_new_is_left_out(cases, left):
    assert selection.again(cases) == left


@pytest.fixture
def collected(request):
    return request.config.stash[selection.COLLECTED]


@pytest.fixture
def whole(collected, root):
    """All tests but the kernels', for which there are processes of their own."""
    files = {*(root / "tests").rglob("test_*.py")} - {*(root / "tests" / "kernels").iterdir()}
    # A package that is not installed takes a file of tests with it.
    if len(files - {item.path for item in collected}) > 5:
        pytest.skip("not all tests were collected")
    return collected


def chosen(items):
    return [item for item in items if not selection.is_left_out(item)]


def test_no_value_of_a_parameter_is_left_out(collected):
    for test, cases in selection.by_test(collected).items():
        cases = [case for case in cases if "slow" not in case.keywords]
        assert chosen(cases) or not cases, f"make test leaves out {test}"
        ruled = [case for case in cases if not hasattr(case, "callspec") or "again" not in
                 [mark.name for mark in case.callspec.marks]]  # fmt: skip
        missing = set().union(*map(selection.values, ruled)) - set().union(*map(selection.values, chosen(cases)))
        assert not missing, f"make test leaves out what {test} has for {[names for names, *_ in missing]}"


def test_every_family_shows_all_that_it_can(whole):
    """One model a form at least: each family brings classes of its own."""
    shown = [defaultdict(set), defaultdict(set)]
    for items, found in zip((whole, chosen(whole)), shown, strict=True):
        for item in items:
            for mark in item.iter_markers("shows"):
                params = {} if "family" in mark.kwargs else item.callspec.params
                found[mark.args[0]].add(mark.kwargs.get("family") or params.get("family") or params["model_type"])
    assert shown[0] == shown[1] and len(shown[0]["attribution"]) > 20


def test_every_module_is_used_by_a_test_that_runs(whole, root):
    """A module is used where a test, or a module that is used, reads a name that it defines. A package that only hands
    the name on, as lrp_fast does `attribute`, does not count."""
    pytest.importorskip("triton")
    modules = {}
    for folder in ("lrp_fast", "kernels"):
        for path in (root / folder).rglob("*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            name = name if folder == "lrp_fast" else f"lrp_fast.{name}"
            modules[name.removesuffix(".__init__")] = path
    # What is imported by its name: kernels("linear"), main(["plan"]).
    by_name = {name.split(".")[-1]: name for home in ("cli", "kernels") for name in modules
               if name.startswith(f"lrp_fast.{home}.") and name.count(".") == 2}  # fmt: skip
    files = {item.path for item in chosen(whole)}
    files |= {path for path in (root / "tests").rglob("*.py") if not path.name.startswith("test_")}
    files |= {*(root / "tests" / "kernels").glob("test_*.py")} - {root / "tests" / "kernels" / "test_shipped.py"}
    used, left = set(), [(path, "") for path in files]
    while left:
        path, package = left.pop()
        for name in names_used(path.read_text("utf-8"), package, by_name) & {*modules} - used:
            used.add(name)
            inner = modules[name]
            left.append((inner, name if inner.name == "__init__.py" else name.rpartition(".")[0]))
    packages = {name for name, path in modules.items() if path.name in ("__init__.py", "__main__.py")}
    unused = {*modules} - used - packages
    assert len(modules) > 100 and not unused, f"no test that make test runs uses {', '.join(sorted(unused))}"


def names_used(source, package, by_name):
    """The modules of lrp_fast that define what a file reads."""
    bound, found = {}, set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(by_name.get(node.value))
        elif isinstance(node, ast.Import):
            for one in node.names:
                if one.name.split(".")[0] == "lrp_fast":
                    found.add(one.name if "." in one.name else None)
                    bound[one.asname or "lrp_fast"] = importlib.import_module(one.name if one.asname else "lrp_fast")
        elif isinstance(node, ast.ImportFrom):
            home = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            if home.split(".")[0] == "lrp_fast":
                for one in node.names:
                    bound[one.asname or one.name] = member(importlib.import_module(home), one.name)
                    found.add(defined_in(bound[one.asname or one.name], home))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            parts = []
            while isinstance(node, ast.Attribute):
                parts.append(node.attr)
                node = node.value
            thing = bound.get(node.id) if isinstance(node, ast.Name) else None
            while isinstance(thing, types.ModuleType) and parts:
                home, thing = thing.__name__, member(thing, parts.pop())
                found.add(defined_in(thing, home))
    return found


def member(module, name):
    """A submodule, or what a module defines."""
    if not hasattr(module, name):
        try:
            return importlib.import_module(f"{module.__name__}.{name}")
        except ModuleNotFoundError:
            return None
    return getattr(module, name)


def defined_in(thing, home):
    """The module that defines something which ``home`` has; of a package, that is what it has itself."""
    if isinstance(thing, types.ModuleType):
        return None if hasattr(thing, "__path__") else thing.__name__
    return getattr(thing, "__module__", None) or home
