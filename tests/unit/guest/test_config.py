"""What the guest is told."""

from __future__ import annotations

from dataclasses import asdict, replace

from agent import wire
from supervisor.config import load_settings
from supervisor.guest.config import guest_config
from supervisor.model.build import BuildRequest, NetworkMode, SecretRef
from tests.samples import POLICY, SOURCE, a_build


def test_everything_of_the_request_that_the_guest_needs_is_there() -> None:
    request = BuildRequest(
        POLICY,
        dockerfile="FROM scratch\n",
        dockerfile_path="a/Dockerfile",
        target="final",
        build_args={"A": "1"},
        secrets=(SecretRef("npm_token", "NPM_TOKEN"), SecretRef("other")),
        base_image_digest="sha256:" + "0" * 64,
        no_cache=True,
    )
    build = a_build(request=request)
    settings = load_settings(mirrors=("docker.io=https://proxy.example",), jwt_secret="s" * 32)
    config = guest_config(build, settings, token="t", seconds=5.0, now=7.0)
    assert config.build_id == build.id
    assert config.repository == f"builds/{build.id}"
    assert (config.registry, config.registry_token) == (settings.registry_url, "t")
    assert (config.source_sha256, config.source_size) == (SOURCE.sha256, SOURCE.size_bytes)
    assert (config.dockerfile, config.dockerfile_path) == ("FROM scratch\n", "a/Dockerfile")
    assert (config.target, config.build_args, config.no_cache) == ("final", {"A": "1"}, True)
    assert config.secrets == (
        wire.SecretRequest("npm_token", "NPM_TOKEN"),
        wire.SecretRequest("other", ""),
    )
    assert (config.timeout_seconds, config.now) == (5.0, 7.0)
    assert config.base_image_digest == request.base_image_digest
    assert config.mirrors == ("docker.io",)
    assert "s" * 32 not in str(asdict(config))


def test_what_was_not_asked_for_is_empty_and_survives_the_way() -> None:
    config = guest_config(a_build(), load_settings(), token="t", seconds=1.0, now=0.0)
    assert (config.dockerfile, config.target, config.base_image_digest) == ("", "", "")
    assert list(wire.FrameDecoder().feed(wire.encode(config))) == [config]


def test_only_a_build_with_a_way_out_is_told_whom_to_trust() -> None:
    for mode, told in ((NetworkMode.EGRESS, "PEM"), (NetworkMode.ISOLATED, "")):
        build = a_build(request=BuildRequest(replace(POLICY, network_mode=mode)))
        config = guest_config(
            build, load_settings(), token="t", seconds=1.0, now=0.0, ca_certificates="PEM"
        )
        assert config.ca_certificates == told
