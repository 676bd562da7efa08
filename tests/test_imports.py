"""Who may import whom: the flow runs one way, and starting is fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import propkit

PACKAGE = Path(propkit.__file__).parent


def _loaded_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import propkit", {"torch", "matplotlib", "xarray", "zarr", "numpy"}),
        (
            "import propkit; propkit.attach; propkit.Recorder",
            {"matplotlib", "xarray", "zarr", "numba"},
        ),
        (
            "import propkit.probes as p; [getattr(p, n) for n in p.__all__]",
            {"matplotlib", "xarray", "zarr", "numba"},
        ),
        (
            "import propkit; propkit.open; propkit.open_study; propkit.Run; import propkit.derived",
            {"torch", "matplotlib"},
        ),
        ("import propkit; f = propkit.figures; [getattr(f, n) for n in f.names()]", {"torch"}),
        (
            "import propkit.training, propkit.models, propkit.data",
            {"propkit.attach", "propkit.recording.recorder"},
        ),
    ],
)
def test_what_an_import_loads(code: str, forbidden: set[str]) -> None:
    assert not forbidden & _loaded_after(code)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("where", "forbidden"),
    [
        ("figures", {"torch"}),
        ("probes", {"zarr", "xarray", "matplotlib"}),
        ("spectra", {"zarr", "xarray", "matplotlib"}),
        ("training", {"propkit.attach", "propkit.recording.recorder"}),
        ("models", {"propkit.attach", "propkit.recording.recorder"}),
        ("data", {"propkit.attach", "propkit.recording.recorder"}),
        ("recipes", {"propkit.attach", "propkit.recording.recorder"}),
        ("store", {"torch", "matplotlib"}),
        ("schema.py", {"torch", "xarray", "zarr", "matplotlib"}),
    ],
)
def test_no_file_imports_what_its_place_forbids(where: str, forbidden: set[str]) -> None:
    place = PACKAGE / where
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    for path in files:
        for name in _imports(path):
            roots = {name, name.split(".")[0], ".".join(name.split(".")[:2])}
            assert not forbidden & roots, f"{path.relative_to(PACKAGE)} imports {name}"


def test_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(["propkit", *path.relative_to(PACKAGE).with_suffix("").parts])
        name = name.removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        for node in [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
        ]:
            node.body = []
        found = set()
        for node in tree.body:  # imports inside functions cannot make a cycle at import time
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("propkit")
            ):
                found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.name for a in node.names if a.name.startswith("propkit")}
        parents = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
        graph[name] = found - {name} - parents
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for other in graph[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_a_function_and_its_file_share_one_name() -> None:
    import propkit.attach
    import propkit.probe
    import propkit.probes.error_moment

    assert callable(propkit.attach)
    assert callable(propkit.probe)
    assert isinstance(propkit.probes.error_moment, propkit.Probe)
    assert "attach" in dir(propkit)
    with pytest.raises(AttributeError, match="no attribute 'attacj'"):
        propkit.attacj  # noqa: B018 - the access is the test


def test_the_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert propkit.__version__ == version("propkit")
