from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobmanager.python_files import import_roots, ray_modules


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
