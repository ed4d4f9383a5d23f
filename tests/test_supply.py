"""What the package is installed from and as: the lock, the lower bounds, the audit and the wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
USERS = ("metrics", "train", "benchmark", "latents", "sweep")  # the extras that the package's own code uses
PIN = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*")


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """By name; the extras of the project itself are followed."""
    found: dict[str, Requirement] = {}
    for need in map(Requirement, lines):
        if need.name == PROJECT["name"]:
            for extra in need.extras:
                found |= requirements(EXTRAS[extra])
        else:
            found[canonicalize_name(need.name)] = need
    return found


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert lines and all(PIN.fullmatch(line) for line in lines), "expected name==version, no index, path or marker"
    names = [line.split("==")[0] for line in lines]
    assert len(set(names)) == len(names)
    return dict(line.split("==") for line in lines)


@pytest.fixture
def lock_program(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TARGET", tmp_path / "lock.txt")
    return module


def test_the_lock_holds_all_that_the_tests_need_in_versions_that_are_allowed():
    locked = pins(ROOT / "requirements" / "lock.txt")
    needed = requirements([*PROJECT["dependencies"], *EXTRAS["test"]])
    assert set(needed) <= set(locked)
    for name, need in needed.items():
        assert need.specifier.contains(locked[name]), f"{need}: locked at {locked[name]}"


def test_every_lower_bound_is_the_version_of_the_minimum_run():
    minimum = pins(ROOT / "requirements" / "minimum.txt")
    bounded = requirements([*PROJECT["dependencies"], *(line for extra in USERS for line in EXTRAS[extra])])
    for name, need in bounded.items():
        assert str(need.specifier) == f">={minimum[name]}", need


def test_the_extra_all_holds_every_other():
    assert set(requirements(EXTRAS["all"])) == {n for extra in EXTRAS for n in requirements(EXTRAS[extra])}


def test_the_lock_program_writes_what_is_installed(lock_program):
    lock_program.main()
    written = pins(lock_program.TARGET)
    direct = lock_program.TARGET.read_text().split("# direct\n")[1].split("\n\n")[0].splitlines()
    assert {line.split("==")[0] for line in direct} == set(requirements([*PROJECT["dependencies"], *EXTRAS["test"]]))
    assert all(version(name).split("+")[0] == pin for name, pin in written.items())
    assert "omegaconf" in written, "what is needed by what is needed is in it"
    assert not {"pip", "aid-control"} & set(written)


@pytest.mark.parametrize("locked", [True, False])
def test_make_installs_the_locked_versions_where_asked(locked):
    command = ["make", "-n", "-B", "test", *(["LOCKED=1"] if locked else [])]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in said.splitlines() if " pip install " in line]
    assert len(installs) == 2
    assert all(("-c requirements/lock.txt" in line) == locked for line in installs)


@pytest.mark.parametrize("code", [0, 1])
def test_an_audit_without_answer_is_no_clean_audit(tmp_path, code):
    tools = tmp_path / ".venv" / "tools"
    (tools / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    auditor = tools / "bin" / "pip-audit"
    auditor.write_text(f'#!/bin/sh\necho "$@" > asked\nexit {code}\n')
    auditor.chmod(0o755)
    (tools / "ready").touch()
    done = subprocess.run(["make", "audit"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (code == 0)
    assert ("audit: not clean" in done.stderr) == (code != 0)
    asked = (tmp_path / "asked").read_text().split()
    assert "--strict" in asked and asked[-2:] == ["-r", "requirements/lock.txt"]


def copy_of_the_source(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, target / name)
    shutil.copytree(ROOT / "aid_control", target / "aid_control", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return target


def build(source: Path, epoch: int) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(command, cwd=source, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}, check=True)
    (wheel,) = (source / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Of two copies that differ in all that must not matter: the place, the dates and the permissions."""
    folder = tmp_path_factory.mktemp("wheels")
    one, other = copy_of_the_source(folder / "one"), copy_of_the_source(folder / "another place" / "deeper")
    for path in other.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return build(one, 1_700_000_000), build(other, 1_700_000_000)


def test_the_wheel_is_the_same_bytes_from_another_place(wheels):
    one, other = wheels
    assert one.name == other.name == f"aid_control-{PROJECT['version']}-py3-none-any.whl"
    assert one.read_bytes() == other.read_bytes()


def test_the_wheel_holds_the_package_with_its_assets_and_nothing_else(wheels):
    source = wheels[0].parents[1]
    files = {p.relative_to(source).as_posix() for p in (source / "aid_control").rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheels[0]) as archive:
        held = set(archive.namelist())
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    about = f"aid_control-{PROJECT['version']}.dist-info/"
    assert {name for name in held if not name.startswith(about)} == files
    assert {f"{about}licenses/LICENSE", f"{about}METADATA"} <= held
    assert {"aid_control/py.typed", "aid_control/images/assets/edm-faces64-mini.safetensors"} <= held
    assert sum(sizes.values()) < 64 * 2**20


def test_the_installed_wheel_runs_without_the_repository(wheels, tmp_path):
    site = tmp_path / "site"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheels[0])], check=True)
    program = (
        "import aid_control\n"
        "from aid_control.images import load_backbone, load_guidance\n"
        "from aid_control.images.guidance import DEFAULT_GUIDANCE\n"
        "print(aid_control.__file__)\n"
        "print(load_guidance(DEFAULT_GUIDANCE).backbone == load_backbone().fingerprint)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    place, fits = run.stdout.splitlines()
    assert Path(place).is_relative_to(site)
    assert fits == "True"
