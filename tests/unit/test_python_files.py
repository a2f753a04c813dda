from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dataflow.errors import ConfigError
from jobmanager.cluster import _fault_in
from jobmanager.python_files import import_roots, ray_modules, requirement_lines


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """One of each kind, with modules that cannot be imported but through it."""
    (tmp_path / "one" / "alone.py").parent.mkdir()
    (tmp_path / "one" / "alone.py").write_text("name = 'a module'")
    (tmp_path / "two" / "packed").mkdir(parents=True)
    (tmp_path / "two" / "packed" / "__init__.py").write_text("name = 'a package'")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "inside.py").write_text("name = 'in a folder'")
    with zipfile.ZipFile(tmp_path / "four.zip", "w") as archive:
        archive.writestr("zipped.py", "name = 'in a zip file'")
    return {
        "alone": str(tmp_path / "one" / "alone.py"),
        "packed": str(tmp_path / "two" / "packed"),
        "inside": str(tmp_path / "three"),
        "zipped": str(tmp_path / "four.zip"),
    }


def test_whatever_is_added_can_be_imported(files: dict[str, str]) -> None:
    for module, path in files.items():
        lines = f"import sys; sys.path[:0] = {import_roots([path])!r}; import {module}"
        subprocess.run([sys.executable, "-S", "-c", lines], check=True)


def test_ray_ships_modules_and_packages_alone(files: dict[str, str]) -> None:
    shipped = [Path(module) for module in ray_modules(files.values())]
    assert [module.name for module in shipped] == ["alone.py", "packed", "inside.py", "zipped.py"]
    assert shipped[-1].read_text() == "name = 'in a zip file'"


def test_a_folder_is_named_once(tmp_path: Path) -> None:
    both = [str(tmp_path / "a.py"), str(tmp_path / "b.py"), str(tmp_path / "a.py")]
    assert import_roots(both) == [str(tmp_path)]
    assert ray_modules(both) == both[:2]


def test_requirements_mean_the_same_wherever_pip_runs(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in ("a.whl", "b.whl", "numpy"):
        (inner / name).touch()
    (tmp_path / "all.txt").write_text(
        "# the rest is below\n\n-r inner/these.txt\nrequests>=2 ; python_version > '3'\n"
        "--index-url https://example.org/simple\n"
    )
    (inner / "these.txt").write_text(
        "--no-index\n--find-links=.\n-c limits.txt\n./a.whl  # ours\nb.whl\nnumpy\n"
        "boto3 \\\n  ==1.36\nfrom-git @ https://example.org/x.tar.gz#sha256=0\n"
        "# ends in a backslash \\\npandas\n-e ./sub\n./sub[extra] ; python_version > '3'\n"
        "-rmore.txt\n-r https://example.org/r.txt\n"
    )
    (inner / "limits.txt").touch()
    (inner / "sub").mkdir()
    (inner / "more.txt").write_text("polars")
    assert requirement_lines(str(tmp_path / "all.txt")) == [
        "--no-index",
        f"--find-links {inner}",
        f"-c {inner}/limits.txt",
        f"{inner}/a.whl",
        f"{inner}/b.whl",
        "numpy",
        "boto3   ==1.36",
        "from-git @ https://example.org/x.tar.gz#sha256=0",
        "pandas",
        f"-e {inner}/sub",
        f"{inner}/sub[extra] ; python_version > '3'",
        "polars",
        "-r https://example.org/r.txt",
        "requests>=2 ; python_version > '3'",
        "--index-url https://example.org/simple",
    ]


def test_requirements_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-r b.txt")
    with pytest.raises(ConfigError, match=r"b\.txt cannot be read: No such file"):
        requirement_lines(str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_text("-r a.txt")
    with pytest.raises(ConfigError, match=r"a\.txt includes itself"):
        requirement_lines(str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"b\.txt cannot be read: it is not UTF-8"):
        requirement_lines(str(tmp_path / "a.txt"))


def test_what_pip_says_is_found_in_rays_report() -> None:
    report = (
        "Failed to set up runtime environment.\nTraceback (most recent call last):\n"
        "Last 50 lines of stdout:\n    Looking in indexes\n"
        "    ERROR: Could not find a version of x\n    ERROR: No matching distribution\n\n"
    )
    assert _fault_in(report) == "Could not find a version of x"
    assert _fault_in("Traceback:\n  OSError: disk full\n") == "OSError: disk full"
