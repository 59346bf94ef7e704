"""`orchestrator.aws` and `ray up cluster.yaml` against a server that speaks AWS's protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests.faults.stores import CREDENTIALS

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"
ADDRESS = "198.51.100.4/32"  # the operator's
pytestmark = pytest.mark.ray


@pytest.fixture
def account(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of an operator whose AWS is a server on loopback and whose ssh reaches none.

    The server invents public addresses, and `ray up` dials them: nothing beyond loopback may be
    contacted, so a stand-in for ssh fails at once.
    """
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    ssh = home / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {home}/dialled\nexit 255\n')
    ssh.chmod(0o755)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "XDG_"))}
    env = {
        **kept,
        **CREDENTIALS,
        "HOME": str(home),
        "PATH": f"{home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
        "AWS_DEFAULT_REGION": REGION,
    }
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", "0"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = next(
            line.split(" on ")[1].strip() for line in server.stdout if "Running on" in line
        )
        yield {**env, "AWS_ENDPOINT_URL": address}
    finally:
        server.kill()
        server.communicate()


def client(env: dict[str, str], kind: str) -> Any:
    return boto3.client(
        kind,  # type: ignore[call-overload]
        region_name=REGION,
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )


def write_file(folder: Path, env: dict[str, str]) -> Path:
    """Write the shipped file with the values that are to be set."""
    image = client(env, "ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    text = (ROOT / "cluster.yaml").read_text()
    for mark, value in (
        ("MY-BUCKET", "bucket-of-mine"),
        ("203.0.113.7/32", ADDRESS),
        ("ami-00000000000000000", image),
        ("ami-11111111111111111", image),
        ("~/sweep-orchestrator: .", f"~/sweep-orchestrator: {ROOT}"),
    ):
        assert mark in text
        text = text.replace(mark, value)
    file = folder / "cluster.yaml"
    file.write_text(text)
    return file


def make(file: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `orchestrator.aws`."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.aws", file],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def machines(ec2: Any) -> list[dict[str, Any]]:
    """Return all machines that live."""
    return [
        machine
        for many in ec2.describe_instances()["Reservations"]
        for machine in many["Instances"]
        if machine["State"]["Name"] != "terminated"
    ]


def up_until_it_dials(file: Path, env: dict[str, str]) -> str:
    """Run `ray up` until it wants SSH; return what it said."""
    up = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "up", str(file), "-y", "--no-config-cache"],
        env=env,
        cwd=file.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        until_s = time.monotonic() + 120
        while not (Path(env["HOME"]) / "dialled").exists():
            assert up.poll() is None, up.communicate()[0]
            assert time.monotonic() < until_s
            time.sleep(0.2)
    finally:
        up.kill()
        said, _ = up.communicate()
    return said


def test_ray_up_launches_the_head_as_the_file_says(tmp_path: Path, account: dict[str, str]) -> None:
    ec2, file = client(account, "ec2"), write_file(tmp_path, account)
    for _ in range(2):  # the second time all is there
        made = make(file, account)
        assert made.returncode == 0, made.stdout + made.stderr
    assert "exists and matches the file" in made.stdout
    said = up_until_it_dials(file, account)
    found = machines(ec2)
    assert len(found) == 1, said
    (head,) = found
    assert head["InstanceType"] == "m7i.xlarge"
    assert "InstanceLifecycle" not in head  # on demand
    assert head["IamInstanceProfile"]["Arn"].endswith("/sweep-orchestrator-head")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    (group,) = head["SecurityGroups"]
    assert group["GroupName"] == "sweep-orchestrator"
    (rules,) = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    let_in = [r["CidrIp"] for rule in rules["IpPermissions"] for r in rule["IpRanges"]]
    assert let_in == [ADDRESS]
    assert [
        pair["GroupId"] for rule in rules["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    ] == [group["GroupId"]]


def test_workers_may_use_the_bucket_only_and_ec2_takes_what_ray_hands_over(
    tmp_path: Path, account: dict[str, str]
) -> None:
    ec2, file = client(account, "ec2"), write_file(tmp_path, account)
    assert make(file, account).returncode == 0
    policy = client(account, "iam").get_role_policy(
        RoleName="sweep-orchestrator-worker", PolicyName="sweeps"
    )
    allowed = policy["PolicyDocument"]["Statement"]
    assert all("bucket-of-mine" in one["Resource"] for one in allowed)
    assert not any(action.startswith("ec2:") for one in allowed for action in one["Action"])
    types = yaml.safe_load(file.read_text())["available_node_types"]
    for kind in ("spot", "on_demand"):
        ec2.run_instances(**types[kind]["node_config"], MinCount=1, MaxCount=1)
    assert [machine.get("InstanceLifecycle") for machine in machines(ec2)] == ["spot", None]


def test_a_group_that_lets_in_others_is_refused(tmp_path: Path, account: dict[str, str]) -> None:
    """As Ray makes it: SSH from everywhere."""
    ec2 = client(account, "ec2")
    group = ec2.create_security_group(GroupName="sweep-orchestrator", Description="Ray's")
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    everybody = {**rule, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[everybody])
    refused = make(write_file(tmp_path, account), account)
    assert refused.returncode == 2
    assert f"must admit ['{ADDRESS}'], as in the file; it admits ['0.0.0.0/0']" in refused.stderr
    assert "Traceback" not in refused.stderr
