"""Three hosts, a shared object store, and a cluster on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts as namespaces
from tests.cluster.clusters import Cluster, new_cluster
from tests.cluster.hosts import OUTSIDE, Host
from tests.faults.stores import Bucket, new_bucket, s3_server


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    why_not = namespaces.missing()
    if why_not:
        pytest.skip(why_not)
    with namespaces.hosts(3, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="session")
def bucket(three: list[Host]) -> Iterator[Bucket]:
    with s3_server(OUTSIDE) as (_, port):
        yield new_bucket(OUTSIDE, port)


@pytest.fixture(scope="session")
def cluster(
    three: list[Host], bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A running cluster of all three hosts, with a prepared dataset in the object store."""
    made = new_cluster(three, tmp_path_factory.mktemp("operator") / "home", bucket)
    made.write(three[1:])
    made.up(3)
    made.start("prepare", "prepare", made.dataset, *made.source, module="data")
    made.finish("prepare", 60)
    yield made
    made.down()
