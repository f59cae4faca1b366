"""The daemon under a real systemd, installed as an operator installs it.

The container is made in namespaces, which takes root; the service itself has the user, the limits
and the system calls that its unit leaves it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cage import cgroup_of, check_caged
from tests.systemd.host import Host, booted, install

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a systemd of its own"),
]

BUILD = "hypeman-ctl build --quiet"
SOURCE = """
mkdir -p /tmp/source
printf 'FROM scratch\\nCOPY Dockerfile /{name}\\n' >/tmp/source/Dockerfile
"""
# As docs/operations.md says.
WITH_TCP = """
umask 077
head -c 32 /dev/urandom | base64 >/etc/hypeman/jwt-secret
sed -i 's/^host = .*/host = "127.0.0.1"/' /etc/hypeman/hypeman.toml
cat >/etc/systemd/system/hypeman.service.d/tcp.conf <<EOF
[Service]
LoadCredential=jwt-secret:/etc/hypeman/jwt-secret
Environment=JWT_SECRET_FILE=%d/jwt-secret
EOF
ip link set lo up
systemctl daemon-reload
systemctl restart hypeman.service
"""
ASK = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8083/builds")
request.add_header("Authorization", "Bearer " + sys.stdin.read().strip())
print(urllib.request.urlopen(request).status)
"""
WITH_POOL = """
printf '[Service]\\nEnvironment=POOL_SIZE=1\\n' >/etc/systemd/system/hypeman.service.d/z.conf
systemctl daemon-reload
systemctl restart hypeman.service
until journalctl --output=cat EVENT=machine.up | grep -q warm; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="hm-", dir="/tmp") as name:
        directory, installation = Path(name) / "c", Path(name) / "i"
        directory.mkdir()
        install(installation)
        with booted(directory, installation) as host:
            host.wait("ActiveState", "active")
            yield host
        install(installation, "remove")
        left = [path for path in installation.rglob("*") if not path.is_dir()]
        assert left == [installation / "etc/hypeman/hypeman.toml"], "settings, and nothing else"


def test_it_is_ready_as_an_ordinary_user(host: Host) -> None:
    assert host.property("StatusText") == "Ready: builds can start."
    pid = host.property("MainPID")
    status = host.run("cat", f"/proc/{pid}/status")
    assert host.run("stat", "--format=%U", f"/proc/{pid}").strip() == "hypeman"
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "Seccomp:\t2" in status


def test_a_build_works_and_the_journal_tells_its_story(host: Host) -> None:
    host.shell(SOURCE.format(name="words-of-a-guest"))
    build_id = host.shell(f"{BUILD} /tmp/source").split()[-1]
    steps = host.shell(f"hypeman-ctl steps {build_id}")
    assert "words-of-a-guest" in steps, "the guest did say it"
    story = host.journal(f"BUILD_ID={build_id}")
    events = [entry["EVENT"] for entry in story]
    assert [event for event in events if event.startswith("build.")][-1] == "build.ready"
    assert "machine.leased" in events
    assert {entry["TENANT"] for entry in story if "TENANT" in entry} == {"local"}
    assert {entry["PRIORITY"] for entry in story} == {"6"}
    machines = {entry["MACHINE_ID"] for entry in story if "MACHINE_ID" in entry}
    assert machines
    for machine in machines:
        ends = [entry["EVENT"] for entry in host.journal(f"MACHINE_ID={machine}")]
        assert "machine.ended" in ends
    assert not [entry for entry in host.journal() if "words-of-a-guest" in str(entry)]


def test_what_is_stuck_is_ended_and_started_again(host: Host) -> None:
    before = host.property("MainPID")
    host.run("kill", "-STOP", before)
    host.wait("NRestarts", "1")
    host.wait("ActiveState", "active")
    assert host.property("MainPID") != before
    messages = [str(entry.get("MESSAGE")) for entry in host.journal("--unit=hypeman")]
    assert any("Watchdog timeout" in message for message in messages)
    assert any("most recent call first" in message for message in messages), "where it was stuck"


def test_a_client_that_comes_while_nothing_runs_starts_it(host: Host) -> None:
    host.run("systemctl", "stop", "hypeman.service")
    assert host.property("ActiveState") == "inactive"
    host.run("hypeman-ctl", "list")
    assert host.property("ActiveState") == "active"


def test_the_tcp_port_is_opened_with_a_key_that_only_the_service_can_read(host: Host) -> None:
    host.shell(WITH_TCP)
    [ready] = host.journal("EVENT=daemon.ready", "--lines=1")
    assert ready["TCP"] == "127.0.0.1:8083"
    asked = f"hypeman-ctl token create --tenant local | /usr/bin/python3 -c '{ASK}'"
    assert host.shell(asked).split()[-1] == "200"


def test_its_machines_are_caged_and_end_with_it(
    host: Host, record_testsuite_property: Callable[[str, object], None]
) -> None:
    host.shell(WITH_POOL)
    [vmm], [device] = host.processes("qemu-system-x86_64"), host.processes("vhost-device-vsock")
    uid = int(host.run("id", "--user", "hypeman"))
    directory = host.shell("ls -d /run/hypeman/machines/*").strip()
    for pid in (vmm, device):
        check_caged(pid, directory, uid)
        assert "/hypeman.slice/hypeman.service/" in cgroup_of(pid)
        assert cgroup_of(pid).endswith(Path(directory).name)
    [ready] = host.journal("EVENT=hypervisor.ready", "--lines=1")
    assert ready["CGROUPS"] != "none"
    record_testsuite_property("cgroup controllers in force", ready["CGROUPS"])
    host.run("systemctl", "stop", "hypeman.service")
    assert host.processes("qemu-system-x86_64") == []
    assert host.shell("ls /run/hypeman/machines") == ""
