"""The cluster files: valid for Ray, safe, and consistent with the program's names."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from orchestrator import aws, spot
from orchestrator.execution import cluster
from orchestrator.plan.machines import planned_machines, workers_fitting
from orchestrator.tracking import client
from tests.orchestrator.sweeps import parse_args

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster.onprem.yaml")


def read(name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(found, dict)
    return found


def commands(name: str) -> list[str]:
    found = read(name)
    return [line for key, lines in found.items() if key.endswith("_commands") for line in lines]


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    validate_config(prepared)  # raises if the file does not match Ray's schema
    assert prepared["cluster_name"] == "sweeps"
    with pytest.raises(ValidationError, match="'wrong' was unexpected"):
        validate_config(prepared | {"wrong": 1})


@pytest.mark.parametrize("name", FILES)
def test_every_ray_starts_with_a_token_and_its_dashboard_on_loopback(name: str) -> None:
    starts = [line for line in commands(name) if "ray start" in line]
    assert len(starts) == 2
    assert all(line.startswith(". ~/.sweep-env; ") for line in starts)
    (settings,) = [line for line in commands(name) if "RAY_AUTH_MODE" in line]
    assert "export RAY_AUTH_MODE=token " in settings
    (head,) = [line for line in starts if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in (ROOT / name).read_text().replace("0.0.0.0/0 ", "")
    mounts = read(name)["file_mounts"]
    # The place where `cluster.ensure_token` and Ray look for it.
    assert "~/.ray/auth_token" in mounts
    assert 'Path.home() / ".ray" / "auth_token"' in Path(cluster.__file__).read_text()


@pytest.mark.parametrize("name", FILES)
def test_names_in_a_file_exist_in_the_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(commands(name))
    for variable, value, field in (
        ("SWEEP_DATA_DIR", "s3://bucket/data", "data_dir"),
        ("SWEEP_STORAGE", "s3://bucket/sweeps", "storage"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000", "tracking_uri"),
    ):
        assert f"{variable}=" in text
        monkeypatch.setenv(variable, value)
        assert getattr(parse_args([]), field) == value
    # The server of `services.sh` listens at the address of the page that a sweep prints.
    (uri,) = re.findall(r"MLFLOW_TRACKING_URI=(\S+?);", text)
    services = (ROOT / "orchestrator" / "services.sh").read_text()
    assert uri == "http://127.0.0.1:5000"
    assert "--port 5000" in services
    assert client.page_address("sqlite:///x", "1", "m", "max").startswith(uri)
    for module in re.findall(r"python -m (\S+)", services + text):
        assert find_spec(module) is not None
    for script in re.findall(r"~/sweep-orchestrator/(\S+)", text.replace(".venv/bin", "")):
        if not script.startswith(":"):
            assert (ROOT / script).exists(), script


def test_the_aws_file_has_no_key_and_requires_version_2_of_the_metadata_service() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"AKIA|aws_secret|SECRET_ACCESS", text, re.IGNORECASE)
    found = read("cluster.yaml")
    for kind in found["available_node_types"].values():
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert "KeyName" not in node
        assert None not in node.values()  # boto3 refuses it
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    types = found["available_node_types"]
    assert types["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["spot"]["priority"] > types["on_demand"]["priority"]
    for name in ("head", "on_demand"):
        assert "InstanceMarketOptions" not in types[name]["node_config"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert found["max_workers"] <= sum(
        kind.get("max_workers", 0) for name, kind in types.items() if name != "head"
    )
    assert spot.METADATA == "http://169.254.169.254"


def test_all_values_to_set_are_reported_before_anything_is_created(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All values marked SET that cannot work unchanged."""
    unset = aws.unset(read("cluster.yaml"))
    assert len(unset) == 4
    assert aws.main([str(ROOT / "cluster.yaml")]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines() == unset
    assert "MY-BUCKET" in printed


def test_roles_and_bucket_are_those_of_the_file() -> None:
    found = read("cluster.yaml")
    assert aws.bucket_of(found) == "MY-BUCKET"
    assert aws.profile_of(found, head=True) == "sweep-orchestrator-head"
    assert aws.profile_of(found, head=False) == "sweep-orchestrator-worker"
    policy = aws.bucket_policy("b")
    assert {s["Resource"] for s in policy["Statement"]} == {"arn:aws:s3:::b", "arn:aws:s3:::b/*"}


def test_a_driver_on_the_head_knows_the_machines_that_its_autoscaler_may_add() -> None:
    """Four machines, although the limits of both kinds add up to six; the head runs no trial."""
    text = (ROOT / "cluster.yaml").read_text()
    assert planned_machines(text) == ((0.0, 0.0), *[(8.0, 1.0)] * 4)
    assert set(planned_machines((ROOT / "cluster.onprem.yaml").read_text())) == set()


def test_a_worker_uses_one_machine_and_shares_fill_a_device() -> None:
    machines = ((0.0, 0.0), (8.0, 1.0), (8.0, 1.0))
    for cpus, gpus, number in (
        *((16, 0, 0), (1, 1, 2), (1, 0.25, 8), (1, 0.2, 10), (0.5, 0.1, 20), (3, 0.25, 4)),
        (1, 2, 0),
    ):
        assert workers_fitting(machines, (cpus, gpus)) == number
    assert workers_fitting([(8.0, 4.0)], (1, 2)) == 2
