"""What a step finds around it, told by the step itself: a hostile one that looks everywhere."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.image import pull

SECRET = "value-of-a-secret-that-no-step-mounts"
# Perl is in every Debian base; 40 is AF_VSOCK, 2 AF_INET, 1 SOCK_STREAM and AF_UNIX. The system
# calls: vsock's other kinds, a pair of them, one by the x32 way, io_uring (which opens sockets past
# every filter), and what would hear the registry's token on loopback: packets, and raw IP.
ASK = r"""
FROM debian:bookworm
COPY connect http /usr/local/bin/
RUN mkdir /found; cd /found; chmod +x /usr/local/bin/*; \
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
    grep -rlF --exclude-dir=proc --exclude-dir=sys value-of-a-secret- / > secrets; true
"""
CONNECT = r"""#!/usr/bin/perl
# Connects to an abstract UNIX socket, whose name is written with an @ for the NUL.
(my $name = $ARGV[0]) =~ s/^@/\0/;
socket(S, 1, 1, 0) or exit 1;
exit(connect(S, pack("S a*", 1, $name)) ? 0 : 1);
"""
HTTP = r"""#!/usr/bin/perl
# Asks the registry's port for a path and prints the status.
use Socket;
socket(S, 2, 1, 0) or die;
connect(S, pack_sockaddr_in(8083, inet_aton("10.102.0.1"))) or die;
syswrite(S, "GET $ARGV[0] HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
print((split / /, scalar <S>)[1]);
"""


def test_step_finds_nothing_of_the_machine_that_it_could_use(
    daemon: Daemon, tmp_path: Path
) -> None:
    secrets = Path(daemon.environment["BUILD_SECRETS_DIR"]) / "acme"
    secrets.mkdir(parents=True, exist_ok=True)
    (secrets / "unmounted").write_text(SECRET)
    build = daemon.build_image(
        {"Dockerfile": ASK, "connect": CONNECT, "http": HTTP}, secrets=[{"id": "unmounted"}]
    )
    image = pull(daemon, build["image_ref"], tmp_path)

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


def _lines(data: bytes) -> list[str]:
    return data.decode(errors="replace").splitlines()
