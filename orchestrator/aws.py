"""`python -m orchestrator.aws cluster.yaml`: makes in AWS what the file names and Ray would not.

The security group, which lets in SSH from the file's address and everything from the cluster's own
machines (Ray, making it, would let SSH in from everywhere), and the roles of head and workers:
both may read and write the file's bucket, the head may start and end machines. Run again, it gives
the roles what the file says now; a group that is there must be as the file says. It prints what it
does. AWS's usual credentials are used.
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

from orchestrator.errors import UsageError

# What Ray's autoscaler asks of EC2 from the head, for machines of its own region.
EC2_ACTIONS = (
    *("RunInstances", "TerminateInstances", "StopInstances", "StartInstances", "CreateTags"),
    *("DescribeInstances", "DescribeInstanceStatus", "DescribeInstanceTypes", "DescribeImages"),
    *("DescribeSubnets", "DescribeSecurityGroups", "DescribeKeyPairs", "DescribeVpcs"),
)
PROFILE_S = 15  # until a new instance profile is known everywhere; Ray waits as long
S3_OF_BUCKET = ("s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads")
S3_OF_OBJECTS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 where the file is not ready for it."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.aws", description=__doc__)
    parser.add_argument("file", type=Path, help="the cluster's, such as cluster.yaml")
    try:
        make(parser.parse_args(argv).file)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make(file: Path) -> None:
    """Make roles and security group as a cluster's file says.

    Raises:
        UsageError: it cannot be read or has values that are to be set, or the group is there and
            lets in others.
    """
    import boto3
    import yaml

    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read as a cluster's file: {error}") from error
    problems = unset(config)
    if problems:
        raise UsageError("\n".join(problems))
    region, bucket = config["provider"]["region"], bucket_of(config)
    iam = boto3.client("iam", region_name=region)
    # An account that never had a spot machine lacks the role with which EC2 starts them.
    unless_there(iam.create_service_linked_role, AWSServiceName="spot.amazonaws.com")
    worker, is_new = make_role(iam, profile_of(config, head=False), bucket_policy(bucket))
    policy = bucket_policy(bucket)
    policy["Statement"] += [
        {
            "Effect": "Allow",
            "Action": [f"ec2:{action}" for action in EC2_ACTIONS],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": region}},
        },
        {"Effect": "Allow", "Action": ["iam:PassRole"], "Resource": worker},
    ]
    make_role(iam, profile_of(config, head=True), policy)
    make_group(boto3.resource("ec2", region_name=region), config)
    if is_new:
        print(f"Waiting {PROFILE_S} s for AWS to know the roles everywhere.", flush=True)
        time.sleep(PROFILE_S)


def unset(config: dict[str, Any]) -> list[str]:
    """Return a sentence for each value that still is the one the file comes with."""
    text = json.dumps(config)
    marks = {
        "MY-BUCKET": "the bucket's name in `setup_commands`",
        "203.0.113.7/32": "your own address in `security_group`",
        "0.0.0.0/0": "your own address in `security_group`, in place of everybody's",
        "ami-00000000000000000": "the head's `ImageId`",
        "ami-11111111111111111": "the GPU machines' `ImageId`",
    }
    return [f"Set {what}; it still is {mark}." for mark, what in marks.items() if mark in text]


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
    """Make the security group in each VPC whose subnets Ray could choose: those with public ones.

    Raises:
        UsageError: there is no such VPC, or the group lets in others than the file says.
    """
    wanted = config["provider"]["security_group"]
    name = wanted["GroupName"]
    subnets = list(ec2.subnets.all())
    vpcs = sorted({subnet.vpc_id for subnet in subnets if subnet.map_public_ip_on_launch})
    if not vpcs:
        raise UsageError(
            "The region has no VPC with public subnets. Make one (`aws ec2 create-default-vpc`)."
        )
    allowed = {r["CidrIp"] for rule in wanted["IpPermissions"] for r in rule["IpRanges"]}
    for vpc in vpcs:
        filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
        found = list(ec2.security_groups.filter(Filters=filters))
        if found and found[0].ip_permissions:
            group = found[0]
            let_in = {r["CidrIp"] for rule in group.ip_permissions for r in rule["IpRanges"]}
            if let_in != allowed:
                raise UsageError(
                    f"The security group {name} ({group.id}) lets in {sorted(let_in)}, the file "
                    f"says {sorted(allowed)}. Change its rules, or delete it and run this again."
                )
            print(f"The security group {name} is there and stays as it is ({group.id}).")
            continue
        group = (
            found[0]
            if found
            else ec2.create_security_group(
                GroupName=name,
                VpcId=vpc,
                Description="Sweeps: SSH from one address, all within the cluster",
            )
        )
        within = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group.id}]}
        group.authorize_ingress(IpPermissions=[within, *wanted["IpPermissions"]])
        print(f"The security group {name} lets in the file's address and itself ({group.id}).")


def make_role(iam: Any, name: str, policy: dict[str, Any]) -> tuple[str, bool]:
    """Make a role for machines and its instance profile, and give it the policy.

    Returns:
        Its ARN, and whether the profile is new.
    """
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    unless_there(iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
    iam.put_role_policy(RoleName=name, PolicyName="sweeps", PolicyDocument=json.dumps(policy))
    is_new = unless_there(iam.create_instance_profile, InstanceProfileName=name)
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if not profile["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    print(f"The role {name} may do what the file needs ({arn}).")
    return arn, is_new


def unless_there(make: Any, **arguments: Any) -> bool:
    """Make something of IAM's that may be there already; returns whether it was made."""
    from botocore.exceptions import ClientError

    try:
        make(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("EntityAlreadyExists", "InvalidInput"):
            raise
        return False
    return True


def bucket_policy(bucket: str) -> dict[str, Any]:
    """Return a policy that allows what a sweep does in one bucket."""
    arn = f"arn:aws:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": list(S3_OF_BUCKET), "Resource": arn},
            {"Effect": "Allow", "Action": list(S3_OF_OBJECTS), "Resource": f"{arn}/*"},
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
