"""How the BuildKit daemon is configured."""

from __future__ import annotations

import tomllib

from agent import buildkit, rootless, wire


def test_the_configuration_is_toml_that_says_what_it_should() -> None:
    config = tomllib.loads(rootless.render_config(["docker.io", "registry.example:5000"]))
    assert config["registry"] == {
        "10.102.0.1:8083": {"http": True},
        "docker.io": {"mirrors": ["10.102.0.1:8083/mirror/docker.io"]},
        "registry.example:5000": {"mirrors": ["10.102.0.1:8083/mirror/registry.example_5000"]},
    }
    assert config["worker"]["oci"]["snapshotter"] == "overlayfs"
    assert config["worker"]["containerd"]["enabled"] is False
    assert "insecure-entitlements" not in config


def test_the_process_sandbox_is_not_switched_off() -> None:
    assert not any("no-process-sandbox" in word for word in rootless.COMMAND)
    assert "noProcessSandbox" not in rootless.render_config([])


def test_steps_may_say_as_much_as_they_like() -> None:
    environment = rootless.environment()
    assert environment["BUILDKIT_STEP_LOG_MAX_SIZE"] == "-1"
    assert environment["BUILDKIT_STEP_LOG_MAX_SPEED"] == "-1"


def test_the_addresses_are_those_of_the_protocol() -> None:
    assert f"{wire.GUEST_ADDRESS}:{wire.REGISTRY_PORT}" == rootless.REGISTRY
    assert f"http://{wire.GUEST_ADDRESS}:{wire.EGRESS_PORT}" == rootless.PROXY
    assert wire.GUEST_ADDRESS in rootless.NO_PROXY.split(",")


def test_a_socket_that_is_not_there_needs_no_hiding() -> None:
    buildkit.hide_otel_socket_sync("/nonexistent/otel-grpc.sock")
