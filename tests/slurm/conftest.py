"""Tests of this folder run when asked for with ``-m slurm``, and only where a Slurm can be started."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster, missing, slurm_cluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slurm: on a Slurm that the test starts; run with `make test-slurm`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slurm" in config.option.markexpr:
        return
    here = Path(__file__).parent
    unasked = [item for item in items if here in item.path.parents]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session", autouse=True)
def slurm_is_installed() -> None:
    """Skips where no Slurm can be started."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one core; their configuration in Slurm's own place, since Snakemake's executor forgets any other."""
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as cluster, cluster.as_default():
        yield cluster
