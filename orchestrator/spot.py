"""`python -m orchestrator.spot`: drains the Ray node of a spot instance before EC2 reclaims it.

cluster.yaml starts it on each spot instance, because Ray does not check for interruptions. EC2
announces an interruption two minutes ahead in the instance metadata and recommends polling every
5 s (docs.aws.amazon.com, "Spot Instance interruption notices"). Ray starts no new work on a drained
node, and a sweep moves its trials to other nodes at the end of an epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator import command
from orchestrator.errors import UsageError
from orchestrator.execution import ray_internals
from orchestrator.redaction import redacted

METADATA = "http://169.254.169.254"  # EC2's instance metadata service, on every instance
POLL_S = 5.0
TOKEN_S = 21_600  # the longest lifetime of a token that the service accepts
_REQUEST_S = 2.0
_HEADER = "X-aws-ec2-metadata-token"


class Metadata:
    """EC2's instance metadata service, version 2: every request needs a token."""

    def __init__(self, address: str) -> None:
        self.address, self._token = address.rstrip("/"), ""

    def interruption(self) -> datetime | None:
        """Return when EC2 will stop or terminate this machine; None while nothing is announced.

        Raises:
            OSError: the service does not answer.
        """
        for is_last in (False, True):
            if not self._token:
                self._token = self._ask("PUT", "api/token", f"{_HEADER}-ttl-seconds", TOKEN_S)
            try:
                text = self._ask("GET", "meta-data/spot/instance-action", _HEADER, self._token)
                when = datetime.fromisoformat(json.loads(text)["time"])
                return when if when.tzinfo else when.replace(tzinfo=UTC)
            except urllib.error.HTTPError as error:
                if error.code == 404:  # nothing is announced
                    return None
                if error.code != 401 or is_last:
                    raise
                self._token = ""  # it has expired
            except (ValueError, KeyError, TypeError) as error:
                raise OSError(f"the metadata service sent an unusable answer: {error!r}") from error
        return None

    def _ask(self, method: str, path: str, header: str, value: str | int) -> str:
        url, headers = f"{self.address}/latest/{path}", {header: str(value)}
        request = urllib.request.Request(url, method=method, headers=headers)
        # Never through a proxy: the service is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_REQUEST_S) as answer:
            return str(answer.read().decode())


def watch(metadata: Metadata, address: str, node_ip: str, poll_s: float) -> str:
    """Wait for the interruption notice, drain this node and return its id.

    An error of the service or of Ray is printed, and the next poll tries again.
    """
    last_printed = ""
    while True:
        try:
            when = metadata.interruption()
            if when is not None:
                left_s = (when - datetime.now(UTC)).total_seconds()
                reason = f"spot interruption at {when.isoformat()}"
                return ray_internals.drain(address, node_ip, left_s, reason)
        except Exception as error:  # Ray's own are of many kinds
            if str(error) != last_printed:  # not the same line every 5 s
                last_printed = str(error)
                command.warn(f"{datetime.now(UTC):%F %T} {redacted(last_printed)}")
        time.sleep(poll_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it ends with status 0 once the node is drained.

    With `--stay` it then idles: a supervisor that restarts it would only drain again.
    """
    parser = argparse.ArgumentParser(prog="python -m orchestrator.spot", description=__doc__)
    add = parser.add_argument
    add("--metadata", default=METADATA, metavar="URL", help="address of EC2's metadata service")
    add("--address", metavar="HOST:PORT", help="Ray cluster (default: this machine's)")
    add("--poll", type=float, default=POLL_S, metavar="S", help="seconds between polls")
    add("--stay", action="store_true", help="keep running after draining")
    command.add_verbose(add)
    return command.run(parser, _drain, argv)


def _drain(arguments: argparse.Namespace) -> int:
    joined, node_ip = ray_internals.this_node()
    address = arguments.address or joined
    if not address:
        raise UsageError("Ray does not run on this machine. Start it first, or give --address.")
    node = watch(Metadata(arguments.metadata), address, node_ip, arguments.poll)
    command.say(f"{datetime.now(UTC):%F %T} EC2 reclaims this machine; node {node} is drained.")
    while arguments.stay:
        time.sleep(POLL_S)
    return command.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
