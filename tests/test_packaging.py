"""What gets installed, and what importing it does."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

try:
    importlib.metadata.distribution("lrp-fast")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("lrp-fast is not installed: these tests are about an installed package", allow_module_level=True)


def python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter, which as with `python -m` has cwd on its path, but nothing from PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result


def test_kernels_package_is_empty():
    # From the root of the repository `import kernels` finds this file, and so may transformers: it must do nothing.
    assert (REPO / "kernels" / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize("folder", ["kernels", "csrc", "tests"])
def test_folders_of_the_repository_are_not_importable(folder, tmp_path):
    found = python(f"import importlib.util; print(importlib.util.find_spec({folder!r}))", tmp_path).stdout
    assert str(REPO / folder) not in found


def test_the_test_process_does_not_see_the_kernels_folder():
    assert str(REPO / "kernels") not in str(importlib.util.find_spec("kernels")), (
        "the root of the repository is on sys.path: run `pytest`, not `python -m pytest`"
    )


def test_transformers_imports_from_the_root_of_the_repository():
    python(
        "import transformers, lrp_fast.kernels, kernels\n"
        "from transformers.utils import is_kernels_available\n"
        "assert kernels.__file__ == lrp_fast.kernels.__file__  # the trap is real\n"
        "assert not is_kernels_available()\n",
        REPO,
    )


def test_importing_changes_nothing(tmp_path):
    # What torch and transformers do when they are imported is their own affair, so they come first.
    result = python(
        "import os, sys, torch, transformers.modeling_utils, warnings\n"
        "def state():\n"
        "    attention = dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)\n"
        "    [attention.pop(f'lrp_fast{end}', None) for end in ('', '_audit')]  # new names of our own disturb nobody\n"
        "    return (dict(os.environ), torch.get_default_dtype(), torch.get_default_device(),\n"
        "        torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state().tolist(),\n"
        "        list(warnings.filters), torch.backends.cuda.matmul.allow_tf32, attention)\n"
        "before = state()\n"
        "print('imported', file=sys.stderr, flush=True)\n"
        "import lrp_fast, lrp_fast.kernels, lrp_fast._native\n"
        "for then, now in zip(before, state(), strict=True):\n"
        "    assert then == now, (then, now)\n",
        tmp_path,
    )
    _, _, stderr = result.stderr.partition("imported\n")
    assert (result.stdout, stderr) == ("", "")


def test_the_command_line_begins_without_torch(tmp_path):
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="lrp-fast")
    python(
        f"import sys, {script.module}\n"
        f"assert callable({script.module}.{script.attr})\n"
        "assert not {'torch', 'transformers', 'lrp_fast'} & set(sys.modules)\n",
        tmp_path,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """The names in a wheel, built from a copy: a build in the repository picks up leftovers, and leaves some."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        if (REPO / name).exists():
            shutil.copy(REPO / name, source)
    for name in ("lrp_fast", "lrp_fast_cli", "kernels", "csrc"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", out, source],
        check=True,
        timeout=600,
    )
    (path,) = out.glob("lrp_fast-*.whl")
    return zipfile.ZipFile(path).namelist()


@pytest.mark.slow
def test_wheel_installs_the_package_and_where_its_command_line_begins(wheel):
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == {"lrp_fast", "lrp_fast_cli"}
    assert len([name for name in wheel if name.startswith("lrp_fast/_native.")]) == 1
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(wheel):
    expected = {f"lrp_fast/{path.relative_to(REPO)}" for path in (REPO / "kernels").glob("**/*.py")}
    expected.add("lrp_fast/kernels/tiles.json")
    expected |= {f"lrp_fast_cli/{path.name}" for path in (REPO / "lrp_fast_cli").glob("*.py")}
    for pattern in ("**/*.py", "report/*.html", "report/*.css", "report/*.js"):
        expected |= {str(path.relative_to(REPO)) for path in (REPO / "lrp_fast").glob(pattern)}
    assert expected <= set(wheel)
    assert {"lrp_fast/kernels/__init__.py", "lrp_fast_cli/__init__.py"} <= expected
