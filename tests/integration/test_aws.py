"""`cluster/aws.py` and `ray up cluster.yaml` against a server that speaks AWS's protocol."""

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


def test_ray_up_launches_the_head_as_the_file_says(tmp_path: Path, account: dict[str, str]) -> None:
    ec2, iam = client(account, "ec2"), client(account, "iam")
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    text = (ROOT / "cluster.yaml").read_text()
    for mark, value in (
        ("MY-BUCKET", "bucket-of-mine"),
        ("203.0.113.7/32", "198.51.100.4/32"),
        ("ami-00000000000000000", image),
        ("ami-11111111111111111", image),
        ("~/sweep-orchestrator: .", f"~/sweep-orchestrator: {ROOT}"),
    ):
        assert mark in text
        text = text.replace(mark, value)
    file = tmp_path / "cluster.yaml"
    file.write_text(text)

    for _ in range(2):  # the second time all is there
        made = subprocess.run(
            [sys.executable, ROOT / "cluster" / "aws.py", file],
            env=account,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
    assert "stays as it is" in made.stdout
    policy = iam.get_role_policy(RoleName="sweep-orchestrator-worker", PolicyName="sweeps")
    allowed = policy["PolicyDocument"]["Statement"]
    assert all("bucket-of-mine" in one["Resource"] for one in allowed)
    assert not any(action.startswith("ec2:") for one in allowed for action in one["Action"])

    types = yaml.safe_load(text)["available_node_types"]
    for kind in ("spot", "on_demand"):  # what Ray hands to boto3 for a worker
        node = types[kind]["node_config"]
        ec2.run_instances(**node, MinCount=1, MaxCount=1, DryRun=False)
    ec2.terminate_instances(
        InstanceIds=[
            one["InstanceId"]
            for many in ec2.describe_instances()["Reservations"]
            for one in many["Instances"]
        ]
    )

    up = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "up", str(file), "-y", "--no-config-cache"],
        env=account,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        dialled = Path(account["HOME"]) / "dialled"
        until_s = time.monotonic() + 120
        while not dialled.exists():  # it waits for SSH
            assert up.poll() is None, up.communicate()[0]
            assert time.monotonic() < until_s
            time.sleep(0.2)
    finally:
        up.kill()
        said, _ = up.communicate()
    found = [
        machine
        for group in ec2.describe_instances()["Reservations"]
        for machine in group["Instances"]
        if machine["State"]["Name"] != "terminated"
    ]
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
    assert let_in == ["198.51.100.4/32"]
    assert [
        pair["GroupId"] for rule in rules["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    ] == [group["GroupId"]]


def test_a_group_that_lets_in_others_is_refused(tmp_path: Path, account: dict[str, str]) -> None:
    """As Ray makes it: SSH from everywhere."""
    ec2 = client(account, "ec2")
    group = ec2.create_security_group(GroupName="sweep-orchestrator", Description="Ray's")
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    everybody = {**rule, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[everybody])
    text = (ROOT / "cluster.yaml").read_text().replace("MY-BUCKET", "b")
    text = text.replace("ami-00000000000000000", "ami-1").replace("ami-11111111111111111", "ami-2")
    file = tmp_path / "cluster.yaml"
    file.write_text(text.replace("203.0.113.7/32", "198.51.100.4/32"))
    ended = subprocess.run(
        [sys.executable, ROOT / "cluster" / "aws.py", file],
        env=account,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "lets in ['0.0.0.0/0'], the file says ['198.51.100.4/32']" in ended.stderr
