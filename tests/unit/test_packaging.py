"""The distribution is what pyproject.toml promises: extras, types, licence, command."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import dataflow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("dataflow", "state", "taskmanager", "jobmanager")


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


PROJECT = _pyproject()["project"]


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements}


CORE = {"ray", "pyarrow", "numpy", "cloudpickle", "boto3"}


def test_the_core_needs_few_libraries_and_the_rest_is_optional() -> None:
    assert _names(PROJECT["dependencies"]) == CORE
    extras = PROJECT["optional-dependencies"]
    assert {"examples", "test", "dev"} <= set(extras)
    assert {"pytest", "hypothesis", "jsonschema", "pyyaml"} <= _names(extras["test"])
    assert {"ray-dataflow", "mypy", "ruff"} <= _names(extras["dev"])


def test_lower_bounds_shut_out_the_releases_that_security_md_names() -> None:
    dependencies = PROJECT["dependencies"]
    security = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    for name, bound in (("ray[default]", "2.56"), ("pyarrow", "18.1")):
        assert f"{name}>={bound}" in dependencies
        assert f"`{name.partition('[')[0]} >= {bound}`" in security


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_nothing_that_is_not_installed_with_it(package: str) -> None:
    allowed = CORE | {"botocore", *PACKAGES} | sys.stdlib_module_names
    for file in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            missing = {name.partition(".")[0] for name in names} - allowed
            if file.name == "pytest_plugin.py":  # only pytest imports it
                missing -= {"pytest"}
            if file.name in ("database.py", "reading.py"):  # of an extra
                missing -= {"rocksdict"}
            assert not missing, f"{file.relative_to(REPOSITORY)}, line {node.lineno}: {missing}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_and_importable(package: str) -> None:
    assert (REPOSITORY / package / "py.typed").is_file()
    module = importlib.import_module(package)
    assert module.__file__, f"{package} has no __init__.py"
    assert Path(module.__file__).parent == REPOSITORY / package


def test_the_build_takes_the_packages_and_their_type_markers() -> None:
    setuptools = _pyproject()["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
    assert setuptools["package-data"]["*"] == ["py.typed"]


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")}
    without = [folder for folder in folders if not (folder / "__init__.py").is_file()]
    assert sorted(folder.relative_to(REPOSITORY).as_posix() for folder in without) == []


def test_the_installed_version_is_the_one_in_the_project_file_and_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert importlib.metadata.version(PROJECT["name"]) == PROJECT["version"]
    assert dataflow.__version__ == PROJECT["version"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\] - (?:\d{4}-\d\d-\d\d|unreleased)$", changelog, re.M)
    assert released[0] == PROJECT["version"]
    assert "## [Unreleased]" in changelog


def test_the_command_is_where_the_project_file_says() -> None:
    module, _, function = PROJECT["scripts"]["dataflow"].partition(":")
    source = REPOSITORY / (module.replace(".", "/") + ".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_licence_is_apache_2() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License\n")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_the_repository_has_its_papers(name: str) -> None:
    assert (REPOSITORY / name).stat().st_size > 500


def test_the_readme_of_the_package_exists() -> None:
    assert (REPOSITORY / PROJECT["readme"]).is_file()


def test_make_knows_the_targets_that_contributing_names() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([a-z]+)", contributing, re.M))
    assert {"test", "check", "sim", "chaos"} <= named <= targets


def test_links_between_the_papers_lead_somewhere() -> None:
    dead = []
    for page in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "k8s").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.name}: {target}")
    assert dead == []
