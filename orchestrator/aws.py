"""`python -m orchestrator.aws FILE`: creates the AWS resources that a cluster file names.

It creates the security group, which admits SSH from the address range in the file and all traffic
between the cluster's machines (a group created by Ray would admit SSH from everywhere), and the
roles of head and workers. Both roles may read and write the bucket in the file; the head's may also
start and terminate machines. Existing roles are updated; an existing security group must match the
file. The command prints each change and uses your usual AWS credentials.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import command
from orchestrator.errors import UsageError

# The calls of Ray's autoscaler on the head to EC2, for machines of its own region.
EC2_ACTIONS = (
    *("RunInstances", "TerminateInstances", "StopInstances", "StartInstances", "CreateTags"),
    *("DescribeInstances", "DescribeInstanceStatus", "DescribeInstanceTypes", "DescribeImages"),
    *("DescribeSubnets", "DescribeSecurityGroups", "DescribeKeyPairs", "DescribeVpcs"),
)
PROFILE_S = 15  # until a new instance profile is usable everywhere; Ray waits as long
S3_OF_BUCKET = ("s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads")
S3_OF_OBJECTS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, 2 where the file is not ready for it."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.aws", description=__doc__)
    parser.add_argument("file", type=Path, help="a cluster file, such as cluster.yaml")
    command.add_verbose(parser.add_argument)
    return command.run(parser, _make, argv)


def _make(arguments: argparse.Namespace) -> int:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        make(arguments.file)
    except (BotoCoreError, ClientError) as error:
        raise UsageError(
            f"AWS refused a request: {error}. Check the credentials, their permissions and the "
            "region; then run the command again."
        ) from error
    return command.COMPLETE


def make(file: Path) -> None:
    """Create the roles and the security group of a cluster's file.

    Raises:
        UsageError: the file cannot be read or still has placeholders, or the group exists and
            admits other addresses.
    """
    import boto3
    import yaml

    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read as a cluster's file: {error}") from error
    if problems := unset(config):
        raise UsageError("\n".join(problems))
    region, bucket = config["provider"]["region"], bucket_of(config)
    iam = boto3.client("iam", region_name=region)
    # An account that never had a spot machine lacks the role that EC2 needs to start them.
    unless_there(iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")
    worker, is_new = make_role(iam, profile_of(config, head=False), bucket_policy(bucket))
    machines = {
        "Action": [f"ec2:{action}" for action in EC2_ACTIONS],
        "Resource": "*",
        "Condition": {"StringEquals": {"aws:RequestedRegion": region}},
    }
    pass_role = {"Action": ["iam:PassRole"], "Resource": worker}
    policy = bucket_policy(bucket, machines, pass_role)
    make_role(iam, profile_of(config, head=True), policy)
    make_group(boto3.resource("ec2", region_name=region), config)
    if is_new:
        command.say(f"Waiting {PROFILE_S} s until the roles are usable everywhere in AWS.")
        time.sleep(PROFILE_S)


def unset(config: dict[str, Any]) -> list[str]:
    """Return a sentence for each placeholder that the file still has."""
    text = json.dumps(config)
    marks = {
        "MY-BUCKET": "the bucket's name in `setup_commands`",
        "203.0.113.7/32": "your own address in `security_group`",
        "0.0.0.0/0": "your own address in `security_group`, instead of everybody's",
        "ami-00000000000000000": "the head's `ImageId`",
        "ami-11111111111111111": "the GPU machines' `ImageId`",
    }
    return [f"Set {what}; it is still {mark}." for mark, what in marks.items() if mark in text]


def bucket_of(config: dict[str, Any]) -> str:
    """Return the one bucket that the file's commands name.

    Raises:
        UsageError: they name none or several.
    """
    found = set(re.findall(r"s3://([^/\s?]+)", " ".join(config["setup_commands"])))
    if len(found) != 1:
        raise UsageError(f"`setup_commands` must name one bucket; they name {sorted(found)}.")
    return str(found.pop())


def profile_of(config: dict[str, Any], *, head: bool) -> str:
    """Return the name of the instance profile, and of its role, of the head or of the workers."""
    names = {
        kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in config["available_node_types"].items()
        if (name == config["head_node_type"]) == head
    }
    if len(names) != 1:
        raise UsageError(f"All workers must have one instance profile; they have {sorted(names)}.")
    return str(names.pop())


def make_group(ec2: Any, config: dict[str, Any]) -> None:
    """Create the security group in each VPC that has public subnets, which Ray chooses from.

    Raises:
        UsageError: there is no such VPC, or the group admits other addresses than the file's.
    """
    wanted = config["provider"]["security_group"]
    name = wanted["GroupName"]
    subnets = list(ec2.subnets.all())
    vpcs = sorted({subnet.vpc_id for subnet in subnets if subnet.map_public_ip_on_launch})
    if not vpcs:
        raise UsageError(
            "The region has no VPC with public subnets. Create one: `aws ec2 create-default-vpc`."
        )
    allowed = {r["CidrIp"] for rule in wanted["IpPermissions"] for r in rule["IpRanges"]}
    for vpc in vpcs:
        filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
        group = next(iter(ec2.security_groups.filter(Filters=filters)), None)
        if group and group.ip_permissions:
            admitted = {r["CidrIp"] for rule in group.ip_permissions for r in rule["IpRanges"]}
            if admitted != allowed:
                raise UsageError(
                    f"The security group {name} ({group.id}) must admit {sorted(allowed)}, as in "
                    f"the file; it admits {sorted(admitted)}. Change its rules, or delete it and "
                    "run this command again."
                )
            print(f"The security group {name} exists and matches the file ({group.id}).")
            continue
        what = "Sweeps: SSH from one address, all traffic within the cluster"
        new = {"GroupName": name, "VpcId": vpc, "Description": what}
        group = group or ec2.create_security_group(**new)
        within = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group.id}]}
        group.authorize_ingress(IpPermissions=[within, *wanted["IpPermissions"]])
        print(f"The security group {name} admits the file's address and itself ({group.id}).")


def make_role(iam: Any, name: str, policy: dict[str, Any]) -> tuple[str, bool]:
    """Create or update a role for machines; return its ARN and whether its profile is new."""
    trust = _policy({"Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"})
    unless_there(iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    iam.put_role_policy(RoleName=name, PolicyName="sweeps", PolicyDocument=json.dumps(policy))
    is_new = unless_there(iam.create_instance_profile, InstanceProfileName=name)
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    print(f"The role {name} has the permissions that the file needs ({arn}).")
    return arn, is_new


def unless_there(make: Any, **arguments: Any) -> bool:
    """Create something in IAM that may exist already; return whether it was created."""
    from botocore.exceptions import ClientError

    try:
        make(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("EntityAlreadyExists", "InvalidInput"):
            raise
        return False
    return True


def bucket_policy(bucket: str, *allowed: dict[str, Any]) -> dict[str, Any]:
    """Return a policy that allows a sweep to use one bucket, and what else is `allowed`."""
    arn = f"arn:aws:s3:::{bucket}"
    whole = {"Action": list(S3_OF_BUCKET), "Resource": arn}
    objects = {"Action": list(S3_OF_OBJECTS), "Resource": f"{arn}/*"}
    return _policy(whole, objects, *allowed)


def _policy(*allowed: dict[str, Any]) -> dict[str, Any]:
    statements = [{"Effect": "Allow", **each} for each in allowed]
    return {"Version": "2012-10-17", "Statement": statements}


if __name__ == "__main__":
    sys.exit(main())
