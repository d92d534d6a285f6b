"""The install job: real interpreters and real pip; a torch of a few lines stands in where only the choice is tested."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.setup import versions
from tests.support.files.wheels import write_wheel
from tests.support.machines.agent_box import Box

TORCH = """
__version__ = "2.13.0"
class version:
    cuda = None
class cuda:
    device_count = staticmethod(lambda: 0)
class Tensor:
    def __matmul__(self, other): return self
    def sum(self): return 64.0 ** 3 + WRONG
def ones(*shape, device): return Tensor()
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with wheels of `tinydep` and of a small torch, the only place pip may look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "torch", "2.13.0", TORCH.replace("WRONG", "0"))
    make_wheel(folder, "tinydep", "1.2", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder: Path, name: str, version: str, text: str) -> None:
    write_wheel(folder, name, version, {f"{name}/__init__.py": text})


def make_python(folder: Path, *wheels: Path) -> str:
    """A virtual environment without pip, with these wheels unpacked into it."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(packages)
    return str(folder / "bin" / "python")


def install(box: Box, **spec: Any) -> dict[str, Any]:
    full = {"python": None, "candidates": [], "requirements": [], "torch": ">=2.9", "env": "e1", "cuda": False, **spec}
    box.call("start", job="install", run="r-1", digest=json.dumps(full), spec=full)
    return box.wait(job="install")


@pytest.mark.nightly
def test_the_real_torch_computes_and_is_remembered(box: Box) -> None:
    ended = install(box, candidates=[sys.executable], requirements=["torch>=2.9", "numpy>=2.0"])
    result = ended["result"]
    assert result["python"] == sys.executable and result["kind"] == "found"
    assert result["torch"].split("+")[0] == importlib.metadata.version("torch").split("+")[0]
    facts = box.call("facts", python=sys.executable)
    assert facts["envs"] == {"e1": result}
    assert result["boot_id"] == facts["boot_id"] and result["driver"] == facts["driver"]
    listed = facts["interpreters"][0]
    assert listed["path"] == sys.executable and listed["torch"] == result["torch"] and listed["trainer"]


def test_the_given_python_comes_first(box: Box, wheels: Path, tmp_path: Path) -> None:
    good = make_python(tmp_path / "good", *wheels.iterdir())
    other = make_python(tmp_path / "other", *wheels.iterdir())
    assert install(box, python=other, candidates=[good])["result"]["python"] == other
    assert install(box, candidates=[good, other], env="e2")["result"]["python"] == good


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ("no torch", "No module named 'torch'"),
        ("wrong sum", "came out wrong"),
        ("old", "torch is 2.1.0, wanted >=2.9"),
        ("no gpu", "torch sees no GPU"),
        ("missing", "No such file"),
    ],
)
def test_what_does_not_compute_is_refused_with_its_reason(
    box: Box, wheels: Path, tmp_path: Path, flaw: str, words: str
) -> None:
    text = {"wrong sum": TORCH.replace("WRONG", "1"), "old": TORCH.replace("WRONG", "0").replace("2.13.0", "2.1.0")}
    make_wheel(tmp_path, "torch", "2.13.0", text.get(flaw, TORCH.replace("WRONG", "0")))
    content = [] if flaw == "no torch" else [tmp_path / "torch-2.13.0-py3-none-any.whl"]
    python = "/no/such/python" if flaw == "missing" else make_python(tmp_path / "flawed", *content)
    ended = install(box, candidates=[python], cuda=flaw == "no gpu")
    assert (ended["outcome"], ended["result"]) == ("failed", None)
    assert ended["last_lines"][-2].startswith("no-interpreter: ") and words in ended["last_lines"][-2]
    assert ended["last_lines"][-1].startswith("hint: ")
    assert box.call("facts")["envs"] == {}


@pytest.mark.nightly
def test_a_vendors_torch_is_kept_and_only_what_is_missing_is_added(box: Box, wheels: Path, tmp_path: Path) -> None:
    vendor = make_python(tmp_path / "vendor", wheels / "torch-2.13.0-py3-none-any.whl")
    before = sorted((tmp_path / "vendor").rglob("*"))
    result = install(box, candidates=[vendor], requirements=["torch>=2.9", "tinydep>=1.0"], allow_build=True)["result"]
    assert result["kind"] == "vendor" and result["python"] == str(box.root / "envs" / "e1" / "bin" / "python")
    where = subprocess.run(
        [result["python"], "-c", "import tinydep, torch; print(torch.__file__, tinydep.__file__)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert where[0].startswith(str(tmp_path / "vendor")) and where[1].startswith(str(box.root / "envs"))
    assert [path for path in sorted((tmp_path / "vendor").rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.nightly
def test_without_any_torch_an_environment_is_built_and_used_again(box: Box, wheels: Path, tmp_path: Path) -> None:
    bare = make_python(tmp_path / "bare")
    spec = {"candidates": [bare], "requirements": ["tinydep>=1.0"], "allow_build": True}
    result = install(box, **spec)["result"]
    assert result["kind"] == "built" and result["torch"] == "2.13.0"
    again = install(box, **spec, streams=1)["result"]
    assert again["kind"] == "env" and again["python"] == result["python"]


def test_behind_a_login_node_only_what_is_given_or_built_counts(box: Box, wheels: Path, tmp_path: Path) -> None:
    """Another interpreter of the login node is perhaps on its own disk, which no node sees."""
    there = make_python(tmp_path / "there", *wheels.iterdir())
    given = make_python(tmp_path / "given", *wheels.iterdir())
    ended = install(box, candidates=[there], elsewhere=True)
    assert ended["outcome"] == "failed" and "none found" in ended["last_lines"][-2]
    assert install(box, python=given, candidates=[given, there], elsewhere=True, env="e2")["result"]["python"] == given


@pytest.mark.nightly
def test_two_runs_that_need_one_environment_build_it_once(box: Box, wheels: Path, tmp_path: Path) -> None:
    bare = make_python(tmp_path / "bare")
    spec = {"python": None, "candidates": [bare], "requirements": [], "torch": ">=2.9", "env": "e1", "cuda": False,
            "allow_build": True, "elsewhere": True}  # fmt: skip
    for run in ("r-1", "r-2"):
        box.call("start", job="install", run=run, digest="d", spec=spec)
    results = [box.wait(job="install", run=run)["result"] for run in ("r-1", "r-2")]
    assert sorted(result["kind"] for result in results) == ["built", "env"]
    assert len({result["python"] for result in results}) == 1


@pytest.mark.nightly
def test_a_build_that_cannot_be_had_fails_with_pips_words(box: Box, wheels: Path, tmp_path: Path) -> None:
    bare = make_python(tmp_path / "bare")
    ended = install(box, candidates=[bare], requirements=["nosuchthing>=1"], allow_build=True)
    assert ended["outcome"] == "failed"
    assert "nosuchthing" in ended["last_lines"][-2] and "pip install" in ended["last_lines"][-2]
    assert not os.path.exists(box.root / "envs" / "e1.json")


@pytest.mark.parametrize(
    ("version", "clauses", "good"),
    [
        ("2.13.0+cpu", ">=2.9", True),
        ("2.9", ">=2.9.0", True),
        ("2.8.9", ">=2.9", False),
        ("2.13.0", "==2.13.0", True),
        ("2.13.0", ">=2.9,<2.13", False),
        ("5.1.0rc1", "", True),
        ("10.0", ">=9.5,!=10.0", False),
    ],
)
def test_versions_compare_by_their_numbers(version: str, clauses: str, good: bool) -> None:
    assert versions.satisfies(version, clauses) is good


def test_requirement_lines_are_taken_apart() -> None:
    assert versions.name("safetensors>=0.5") == "safetensors" and versions.rest("safetensors>=0.5") == ">=0.5"
    assert versions.name("numpy") == "numpy" and versions.rest("numpy") == ""


def test_a_machine_whose_cards_complain_is_refused_at_once_and_nothing_is_built(box: Box, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    make_wheel(tmp_path, "torch", "2.13.0", 'raise RuntimeError("CUDA error 802: system not yet initialized")')
    python = make_python(broken, tmp_path / "torch-2.13.0-py3-none-any.whl")
    spec = {"python": None, "candidates": [python, python], "requirements": [], "torch": ">=2.9", "env": "e1",
            "cuda": False, "allow_build": True}  # fmt: skip
    box.call("start", job="install", run="r-1", digest="d", spec=spec)
    ended = box.wait(job="install")
    assert ended["outcome"] == "failed"
    assert any(line.startswith("bad-gpu: ") and "802" in line for line in ended["last_lines"])
    assert not (box.root / "envs" / "e1").exists()
