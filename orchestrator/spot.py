"""`python -m orchestrator.spot`: runs beside Ray on a spot machine and drains it when it is to go.

Ray itself does not ask EC2 whether a machine is about to be taken back. EC2 says so two minutes
before, in the instance metadata, and recommends to look every 5 s
(docs.aws.amazon.com, "Spot Instance interruption notices"). Once Ray knows, it starts nothing there
any more, and a sweep leaves the node at the end of an epoch.
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

from orchestrator.execution import ray_internals

METADATA = "http://169.254.169.254"  # EC2's instance metadata service, on every instance
POLL_S = 5.0
TOKEN_S = 21_600  # the longest that a token of the service may live
_REQUEST_S = 2.0


class Metadata:
    """EC2's instance metadata service, version 2: every question needs a token."""

    def __init__(self, address: str) -> None:
        self.address, self._token = address.rstrip("/"), ""

    def interruption(self) -> datetime | None:
        """Return when this machine will be stopped or terminated; None while nothing is known.

        Raises:
            OSError: the service does not answer.
        """
        for is_last in (False, True):
            if not self._token:
                self._token = self._ask("PUT", "api/token", f"ttl-seconds:{TOKEN_S}")
            try:
                text = self._ask("GET", "meta-data/spot/instance-action", f":{self._token}")
                said = datetime.fromisoformat(json.loads(text)["time"])
                return said if said.tzinfo else said.replace(tzinfo=UTC)
            except urllib.error.HTTPError as error:
                if error.code == 404:  # so it says that there is none
                    return None
                if error.code != 401 or is_last:
                    raise
                self._token = ""  # it has expired
            except (ValueError, KeyError, TypeError) as error:
                raise OSError(f"the metadata service says nonsense: {error!r}") from error
        return None

    def _ask(self, method: str, path: str, token: str) -> str:
        name, _, value = token.partition(":")
        header = "X-aws-ec2-metadata-token" + (f"-{name}" if name else "")
        request = urllib.request.Request(
            f"{self.address}/latest/{path}", method=method, headers={header: value}
        )
        # Never through a proxy: the service is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_REQUEST_S) as answer:
            return str(answer.read().decode())


def watch(metadata: Metadata, address: str, node_ip: str, poll_s: float) -> str:
    """Wait for the notice that this machine is taken back, then drain it; returns the node's id.

    What fails for a while (the service, Ray) is asked again at the next look.
    """
    last_said = ""
    while True:
        try:
            when = metadata.interruption()
            if when is not None:
                left_s = (when - datetime.now(UTC)).total_seconds()
                return ray_internals.drain(
                    address, node_ip, left_s, f"spot interruption at {when.isoformat()}"
                )
        except Exception as error:  # Ray's own are of many kinds
            if str(error) != last_said:  # not every 5 s the same
                last_said = str(error)
                print(f"{datetime.now(UTC):%F %T} {last_said}", file=sys.stderr, flush=True)
        time.sleep(poll_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it ends with status 0 once the node is drained.

    With `--stay` it does not end then: whoever starts it again would only drain again.
    """
    parser = argparse.ArgumentParser(prog="python -m orchestrator.spot", description=__doc__)
    parser.add_argument("--metadata", default=METADATA, metavar="URL", help="of the service")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the cluster (default: joined)")
    parser.add_argument("--poll", type=float, default=POLL_S, metavar="S", help="between looks")
    parser.add_argument("--stay", action="store_true", help="do not end after the drain")
    arguments = parser.parse_args(argv)
    joined, node_ip = ray_internals.this_node()
    address = arguments.address or joined
    if not address:
        print("No Ray runs on this machine. Start it first, or give --address.", file=sys.stderr)
        return 2
    try:
        node = watch(Metadata(arguments.metadata), address, node_ip, arguments.poll)
    except KeyboardInterrupt:
        return 130
    print(f"{datetime.now(UTC):%F %T} The machine is to go; node {node} is drained.", flush=True)
    while arguments.stay:
        time.sleep(POLL_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
