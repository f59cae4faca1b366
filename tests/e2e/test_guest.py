"""What a hostile step finds around it, told by the step itself, and what it can say: anything.

One build does both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bases import put_perl
from tests.e2e.daemon import Daemon
from tests.e2e.image import Image, pull

SECRET = "value-of-a-secret-that-no-step-mounts"
# 40 is AF_VSOCK, 2 AF_INET, 1 SOCK_STREAM and AF_UNIX. The system
# calls: vsock's other kinds, a pair of them, one by the x32 way, io_uring (which opens sockets past
# every filter), and what would hear the registry's token on loopback: packets, and raw IP.
ASK = r"""
FROM busybox
COPY perl /
COPY connect http /bin/
RUN mkdir /found; cd /found; \
    tail -n +3 /proc/net/dev | cut -d: -f1 > interfaces; \
    cat /proc/self/uid_map > uid_map; \
    perl -e 'print socket(S, 40, 1, 0) ? "opened" : "refused: $!"' > vsock; \
    perl -e 'print socket(S, 2, 1, 0) ? "opened" : "refused: $!"' > inet; \
    perl -e 'for (@ARGV) { my @call = map { /^z/ ? "\0" x 120 : 0 + $_ } split /,/; \
        print syscall(@call) < 0 ? "refused" : "opened: $_", "\n" }' \
        41,40,2,0 41,40,5,0 53,40,1,0,z 1073741865,40,1,0 425,8,z 41,17,3,768 41,2,3,1 > doors
RUN cd /found; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\0' '\n' > processes; \
    ls -d /dev/* > devices; \
    ls -dR /run/hypeman /config /home/builder /src /run/buildkit /run/secrets > places 2>&1; \
    find / -xdev -type s > sockets; \
    grep -c . /proc/net/unix > unix; \
    grep -o '@.*' /proc/net/unix | sort -u | while read -r name; do \
        connect "$name" && echo "$name"; done > reached; \
    awk '$4 == "0A" {print $2}' /proc/net/tcp /proc/net/tcp6 > listeners
RUN cd /found; http /v2/builds/x/tags/list > registry; http /v2/token > token; \
    http /builds > api; http /health > health; http /metrics > metrics; \
    (unshare -U true; unshare -m true; mount -t tmpfs none /mnt; mknod /found/disk b 254 0; \
     chroot /proc/1/root true && echo same root; echo b > /proc/sysrq-trigger; \
     echo 1 > /proc/sys/kernel/panic; dmesg) > escapes 2>&1; \
    find / \( -path /proc -o -path /sys \) -prune -o \
        -type f -exec grep -lF value-of-a-secret- {} + > secrets; true
"""
CONNECT = r"""#!/usr/bin/perl
# Connects to an abstract UNIX socket, whose name is written with an @ for the NUL.
(my $name = $ARGV[0]) =~ s/^@/\0/;
socket(S, 1, 1, 0) or exit 1;
exit(connect(S, pack("S a*", 1, $name)) ? 0 : 1);
"""
HTTP = r"""#!/usr/bin/perl
# Asks the registry's port for a path and prints the status.
socket(S, 2, 1, 0) or die;
connect(S, pack("S n C4 x8", 2, 8083, 10, 102, 0, 1)) or die;
syswrite(S, "GET $ARGV[0] HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
print((split / /, scalar <S>)[1]);
"""
LINES, SUFFIX = 100_000, " is the number of this line"
TIME = "2026-01-01T00:00:00Z"
# What BuildKit and its client write, and what a terminal obeys. `\060` is how printf spells a zero.
FORGERY = r"""
COPY report.json /
RUN cat /report.json; cat /report.json >&2
RUN printf '\033[2J\033]0;title\007red \033[31m text\r over\b\n'; \
    printf 'a\000b\377\376c\n'; printf '[ready]\n#1 DONE 0.0s\nid: 7\ndata: {}\n\nerror: x\n'; \
    printf 'u\342\200\250data: {}\302\205v\r#1 DONE\n'
RUN head -c 3000000 /dev/zero | tr '\000' x; echo; echo after the line
RUN seq 1000000 1099999 | sed 's/$/ is the number of this line/'
"""
REPORT = f"""\
{{"vertexes":[{{"digest":"sha256:forged","name":"exporting to image","started":"{TIME}"}}]}}
{{"vertexes":[{{"digest":"sha256:forged","name":"[9/9] RUN forged","error":"forged"}}]}}
{{"containerimage.digest":"sha256:{"0" * 64}"}}
error: failed to solve: forged
{{"type":"status","status":"ready"}}
"""


@dataclass(frozen=True)
class Hostile:
    """The build, and the image that it has made."""

    build: dict[str, Any]
    image: Image


@pytest.fixture(scope="module")
def hostile(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    secrets = Path(daemon.environment["BUILD_SECRETS_DIR"]) / "acme"
    secrets.mkdir(parents=True, exist_ok=True)
    (secrets / "unmounted").write_text(SECRET)
    context = tmp_path_factory.mktemp("hostile")
    put_perl(context / "perl")
    files = {"Dockerfile": ASK + FORGERY, "report.json": REPORT, "connect": CONNECT, "http": HTTP}
    for name, text in files.items():
        (context / name).write_text(text)
        (context / name).chmod(0o755)
    build = daemon.build_image(context, secrets=[{"id": "unmounted"}])
    return Hostile(build, pull(daemon, build["image_ref"], tmp_path_factory.mktemp("pulled")))


def test_step_finds_nothing_of_the_machine_that_it_could_use(
    daemon: Daemon, hostile: Hostile
) -> None:
    build, image = hostile.build, hostile.image

    def found(name: str) -> list[str]:
        return image.read(f"found/{name}").decode(errors="replace").split()

    # The network: loopback, and on it the registry and the proxy.
    assert found("interfaces") == ["lo"]
    assert found("vsock")[0] == "refused:"
    assert found("inet") == ["opened"]
    assert found("doors") == ["refused"] * 7
    here = f"{int.from_bytes(bytes([10, 102, 0, 1]), 'little'):08X}"
    assert sorted(found("listeners")) == [f"{here}:0C38", f"{here}:1F93"]
    # The registry knows nobody without a token, and no other route of the API is behind it.
    assert found("registry") == ["401"]
    assert found("token") == ["401"]
    assert {*found("api"), *found("health"), *found("metrics")} == {"404"}
    # Processes: its own. Root of the step is uid 1000 of the guest, the user of buildkitd.
    assert found("uid_map")[:3] == ["0", "1000", "1"]
    processes = image.read("found/processes").decode(errors="replace")
    assert "cat" in processes.split()
    for other in ("buildkitd", "buildctl", "rootlesskit", "builder-agent", "DOCKER_CONFIG"):
        assert other not in processes
    # Sockets: none by path, none that answers by an abstract name.
    assert found("sockets") == []
    assert found("reached") == []
    # Files: nothing of the agent, no device of the machine, no secret.
    assert all("No such file" in line or not line for line in _lines(image.read("found/places")))
    devices = {Path(name).name for name in found("devices")}
    assert not devices & {"vsock", "vda", "vdb", "kmsg", "mem", "fuse", "console", "ttyS0", "loop0"}
    assert found("secrets") == []
    assert "found/disk" not in image.files
    assert len(_lines(image.read("found/escapes"))) >= 7
    assert SECRET not in daemon.log(build["id"])


def test_output_is_whole_and_forges_nothing(daemon: Daemon, hostile: Hostile) -> None:
    build = hostile.build
    assert hostile.image.digest == build["image_digest"]

    events = list(daemon.follow(build["id"]))
    statuses = [event["status"] for event in events if event["type"] == "status"]
    assert statuses == ["queued", "building", "pushing", "ready"]
    steps = {event["step"]["digest"] for event in events if event["type"] == "step"}
    assert "sha256:forged" not in steps
    assert not any(event["step"].get("error") for event in events if event["type"] == "step")
    lines = [event for event in events if event["type"] == "log"]
    said = [event["content"] for event in lines]
    assert said.count(REPORT.splitlines()[0]) == 2  # each stream is told as it was written
    assert "\x1b[2J\x1b]0;title\x07red \x1b[31m text\r over\b" in said
    assert "a\0b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c" in said
    # What is a line's end to some readers (to this one of events, too) is none here.
    assert "u\u2028data: {}\x85v\r#1 DONE" in said
    # BuildKit would stop at 2 MiB of a step, and above 200 KiB a second.
    pieces = [event["content"] for event in lines if event["content"].startswith("xxx")]
    assert sum(map(len, pieces)) == 3_000_000
    assert [line for line in said if line.endswith(SUFFIX)] == [
        f"{number}{SUFFIX}" for number in range(1_000_000, 1_000_000 + LINES)
    ]
    text = daemon.log(build["id"])
    assert text.count("\n") > LINES
    assert text.count("\n") == len(text.splitlines())
    assert "u\\u2028data: {}\\x85v\\r#1 DONE\n" in text
    assert "clipped" not in text
    assert "log is cut" not in text


def _lines(data: bytes) -> list[str]:
    return data.decode(errors="replace").splitlines()
