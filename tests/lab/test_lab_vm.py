"""The virtual machine: it boots, and carries output, exit status and files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lablib import LabError, vm
from lablib.daemon import PROJECT

boots = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="sharing the host's root takes root"),
]


def run(tmp_path, command, *, timeout=120, cwd=PROJECT):
    script = (
        "import sys; from pathlib import Path; from lablib.vm import VirtualMachine\n"
        f"machine = VirtualMachine(timeout={timeout}, out=Path({str(tmp_path / 'out')!r}))\n"
        f"sys.exit(machine.run(['sh', '-c', {command!r}]))"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "netns-lab")},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


@pytest.mark.parametrize("mark", [pytest.param(None, marks=boots)])
def test_a_stock_kernel_with_wireguard_runs_the_command_where_we_are(tmp_path, mark):
    directory = tmp_path / "a 'quoted' directory"
    directory.mkdir()
    mine, written = directory / "mine", tmp_path / "out" / "written"

    result = run(
        tmp_path,
        "ip link add wg0 type wireguard && ip link show wg0 >/out/written; touch mine; pwd; exit 7",
        cwd=directory,
    )

    assert result.returncode == 7, result.stderr
    assert result.stdout == f"{directory}\n"
    assert "wg0" in written.read_text()
    assert not mine.exists()


@pytest.mark.parametrize("mark", [pytest.param(None, marks=boots)])
def test_a_command_that_takes_too_long_is_stopped(tmp_path, mark):
    result = run(tmp_path, "sleep 1000", timeout=5)

    assert result.returncode == vm.STATUS_TIMEOUT
    assert "after 5 s" in result.stderr


@pytest.mark.parametrize("mark", [pytest.param(None, marks=boots)])
def test_a_kernel_that_panics_is_told_apart_from_a_command_that_fails(tmp_path, mark):
    result = run(tmp_path, "echo c >/proc/sysrq-trigger; sleep 60")

    assert result.returncode == vm.STATUS_PANIC
    assert "sysrq triggered crash" in result.stderr


def test_everything_missing_is_named_by_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(vm, "SYSTEM_PROGRAMS", "/nowhere")
    monkeypatch.setattr(vm, "VIRTIOFSD_PLACES", ("/nowhere/virtiofsd",))

    with pytest.raises(LabError) as missing:
        vm.find_tools()

    for package in ("qemu-system-x86", "busybox-static", "kmod", "linux-image-cloud-amd64"):
        assert package in str(missing.value)


def test_a_directory_that_the_machine_hides_is_refused():
    with pytest.raises(LabError, match="/run is not seen"):
        vm.VirtualMachine().run(["true"], directory=Path("/run"))
