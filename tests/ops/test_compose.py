"""docker-compose.yml against the files that it mounts, the settings, and the bounds of a container."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import yaml

from app.server.run import GRACE_S
from app.settings import Settings, variable
from tests.running import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
services = pytest.mark.parametrize("name", sorted(SERVICES))


def binds(service: dict[str, Any]) -> dict[str, str]:
    """Return each path in the container with the path in the repository that is mounted there."""
    found = [volume.split(":") for volume in service.get("volumes", [])]
    return {parts[1]: parts[0] for parts in found if parts[0].startswith(".")}


@services
def test_a_service_has_bounds_and_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@services
def test_a_service_has_a_health_check(name: str) -> None:
    in_image = name == "leuko" and "\nHEALTHCHECK " in (ROOT / "Dockerfile").read_text()
    assert in_image or SERVICES[name]["healthcheck"]["test"]


@services
def test_what_is_mounted_is_there_and_cannot_be_written(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, *options = volume.split(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert options == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


def test_compose_starts_what_make_image_built_and_all_that_name_it_say_so() -> None:
    assert SERVICES["leuko"]["image"] == "leuko:cpu"
    assert SERVICES["leuko"]["build"]["target"] == "cpu"
    for path in ("docker-compose.yml", "README.md", "docs/operations.md", "docs/containers.md"):
        text = (ROOT / path).read_text()
        [about] = [part for part in re.split(r"\n\n|\n- ", text) if "`docker compose up`" in part]
        assert "`docker-compose up`" in about, path
        assert "`make image`" in about, path


def test_its_variables_are_settings() -> None:
    known = {variable(setting) for setting in fields(Settings)}
    assert {*SERVICES["leuko"]["environment"]} <= known


def test_a_stop_has_the_time_that_it_may_take() -> None:
    # The server waits for requests, and then the engine for what was admitted.
    assert int(SERVICES["leuko"]["stop_grace_period"].rstrip("s")) > GRACE_S + 2 * Settings().drain_s


def test_prometheus_and_grafana_find_what_is_provisioned() -> None:
    mounted = binds(SERVICES["prometheus"])
    config = yaml.safe_load((ROOT / mounted["/etc/prometheus"] / "prometheus.yml").read_text())
    assert config["rule_files"]
    for rules in config["rule_files"]:
        assert (ROOT / mounted["/etc/prometheus"] / rules).is_file()
    targets = [
        one for job in config["scrape_configs"] for part in job["static_configs"] for one in part["targets"]
    ]
    assert "leuko:8000" in targets
    grafana = binds(SERVICES["grafana"])
    provisioning = ROOT / grafana["/etc/grafana/provisioning"]
    [source] = yaml.safe_load(next(provisioning.glob("datasources/*.y*ml")).read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load(next(provisioning.glob("dashboards/*.y*ml")).read_text())["providers"]
    assert [*(ROOT / grafana[provider["options"]["path"]]).glob("*.json")]
