"""Hosts from the command line: check, ssh and hosts against a real sshd, and what a wrong one says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.machines.sshd import Sshd


@pytest.fixture
def inventory(box: Sshd, tmp_path: Path) -> Path:
    """`box` as two CPU ranks with the tests' own interpreter, at 36 cents an hour."""
    path = tmp_path / "inventory.toml"
    path.write_text(box.inventory_entry(extra=f'python = "{sys.executable}"\nprice_per_hour_usd = 0.36\n'))
    return path


def test_check_looks_at_everything_a_run_needs(gptctl: Gptctl, inventory: Path) -> None:
    done = gptctl("check", "box", "--recipe", "quickstart", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    found = {each["what"]: each for each in answer["checks"]}
    assert answer["host"] == "box"
    assert set(found) >= {"reach", "clock", "python", "cores", "computes", "disk", "tools", "network"}
    assert [each for each in answer["checks"] if each["level"] == "fail"] == []
    assert "MB/s" in found["network"]["found"] or "GB/s" in found["network"]["found"]


@pytest.mark.nightly
def test_check_counts_what_a_recipe_keeps_of_its_own_steps(
    gptctl: Gptctl, inventory: Path, tiny: Callable[..., str], tmp_path: Path
) -> None:
    keeping = tmp_path / "keeping.toml"
    keeping.write_text(f'extends = "{tiny(100)}"\nname = "keeping"\n[train]\ncheckpoint_every = 10\nkeep_every = 10\n')
    for host in ((), ("box",)):
        done = gptctl("check", *host, "--recipe", str(keeping), "--json")
        found = {each["what"]: each for each in json.loads(done.stdout)["checks"]}
        assert found["disk"]["level"] == "ok", found["disk"]


def test_check_prints_lines_with_fixes(gptctl: Gptctl, inventory: Path, box: Sshd) -> None:
    inventory.write_text(inventory.read_text().replace("2xCPU", "1x3090"))
    done = gptctl("check", "box")
    assert done.returncode == 4
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("fail gpus")]
    assert "0 of 1" in line
    assert "fix: " in done.stdout and "\x1b" not in done.stdout


def test_a_host_that_refuses_is_said_with_the_code_of_a_machine(gptctl: Gptctl, inventory: Path, box: Sshd) -> None:
    box.kill()
    checked = gptctl("check", "box", "--json")
    assert checked.returncode == 4
    (reach,) = json.loads(checked.stdout)["checks"]
    assert (reach["what"], reach["level"]) == ("reach", "fail")
    shell = gptctl("ssh", "box")
    assert (shell.returncode, shell.stdout) == (4, "")
    assert "Traceback" not in shell.stderr and "next: " in shell.stderr


def test_a_stranger_is_not_trusted_until_somebody_says_so(gptctl: Gptctl, inventory: Path) -> None:
    known = [line for line in inventory.read_text().splitlines() if not line.startswith("fingerprint")]
    inventory.write_text("\n".join(known) + "\n")
    refused = gptctl("ssh", "box", "--", "true")
    assert refused.returncode == 4 and "--accept-new-host-key" in refused.stderr
    assert gptctl("ssh", "box", "--accept-new-host-key", "--", "true").returncode == 0
    assert gptctl("ssh", "box", "--", "true").returncode == 0


def test_a_changed_host_key_stops_everything(gptctl: Gptctl, inventory: Path, box: Sshd) -> None:
    assert gptctl("ssh", "box", "--", "true").returncode == 0
    box.restart(new_host_key=True)
    done = gptctl("ssh", "box", "--accept-new-host-key", "--", "true")
    assert done.returncode == 4 and "key" in done.stderr


def test_ssh_runs_a_command_with_its_words_as_they_are(gptctl: Gptctl, inventory: Path, tmp_path: Path) -> None:
    words = ["it's", "$(touch owned)", "a  b", "semi;colon", "new\nline", "*"]
    done = gptctl("ssh", "box", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)
    assert (done.returncode, done.stdout) == (0, f"{words}\n")
    assert gptctl("ssh", "box", "--", "sh", "-c", "exit 7").returncode == 7


def test_hosts_lists_the_inventory_and_local(gptctl: Gptctl, inventory: Path, box: Sshd) -> None:
    rows = {row["host"]: row for row in json.loads(gptctl("hosts", "--json").stdout)["hosts"]}
    assert set(rows) == {"local", "box"}
    assert (rows["box"]["provider"], rows["box"]["price_per_hour_usd"]) == ("ssh", 0.36)
    assert str(box.address().host) in gptctl("hosts").stdout


def test_two_hosts_in_one_plan(gptctl: Gptctl, inventory: Path, machines: Callable[..., Sshd]) -> None:
    plans = json.loads(gptctl("plan", "quickstart", "--host", "box", "--host", "local", "--json").stdout)["plans"]
    assert {plan["host"]: plan["price_per_hour_usd"] for plan in plans} == {"local": 0.0, "box": 0.36}


def test_a_host_of_several_machine_types_has_a_row_for_each(gptctl: Gptctl, tmp_path: Path) -> None:
    entry = '[hosts.sim]\nprovider = "rehearsal"\nmachine = "8xA100-40GB-simulated"\nmachines = ["8xH100"]\n'
    (tmp_path / "inventory.toml").write_text(entry)
    rows = json.loads(gptctl("hosts", "--offline", "--json").stdout)["hosts"]
    assert [row["machine"] for row in rows if row["host"] == "sim"] == ["8xA100-40GB-simulated", "8xH100"]
