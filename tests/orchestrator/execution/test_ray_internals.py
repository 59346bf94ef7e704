"""Ray still has what `ray_internals` uses although it is undocumented; starts no Ray.

A failure here after an update of Ray says which definition of `ray_internals` to read again.
"""

from __future__ import annotations

import atexit
import importlib
import inspect
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import ray
from ray import _raylet
from ray._common import constants as common
from ray._private import node as node_module
from ray._private import ray_constants, services, utils, worker
from ray._private.node import Node
from ray._private.state import GlobalState, state
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train.v2._internal import constants, exceptions
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.tune import registry
from ray.tune.execution import class_cache, cluster_info
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, remove_placement_group

from orchestrator.execution import cluster, ray_internals

ROOT = Path(__file__).parents[3]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_installed_ray_is_the_one_that_was_read() -> None:
    assert ray.__version__ == ray_internals.READ_AT


def test_no_other_file_uses_private_modules_or_attributes_of_ray() -> None:
    private = re.compile(r"\b(ray(\.\w+)*\._(?!_)|ray\.core\.generated|class_cache|_raylet\b)")
    files = [
        path for name in ("orchestrator", "benchmarks") for path in (ROOT / name).rglob("*.py")
    ]
    assert [
        path.name for path in files if any(map(private.search, path.read_text().splitlines()))
    ] == ["ray_internals.py"]


def test_ray_reads_the_environment_variables_that_are_set_for_it() -> None:
    package = Path(ray.__file__).parent
    folders = [package / name for name in ("_common", "_private", "train", "tune")]
    source = "".join(path.read_text() for each in folders for path in each.rglob("*.py"))
    names = {*cluster._ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG", "RAY_AUTH_MODE", "RAY_USE_TLS"}
    assert {name for name in names if name not in source} == set()


# Start and end of Ray.


def test_the_address_of_the_last_ray_start_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameters(services.find_bootstrap_address) == ["temp_dir"]
    monkeypatch.setattr(utils, "read_ray_address", lambda temp_dir: "10.0.0.1:6379")
    assert ray_internals.this_node()[0] == "10.0.0.1:6379"

    def refuse(temp_dir: None) -> str:
        raise PermissionError("another user's")

    monkeypatch.setattr(utils, "read_ray_address", refuse)
    assert ray_internals.this_node()[0] is None


def test_own_clusters_are_those_that_ray_start_wrote_a_file_for(tmp_path: Path) -> None:
    """Not the private Ray of another sweep, and not what another user's file says."""

    def raylet(pid: int, *words: str) -> None:
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/cmdline").write_text("\0".join([*words, ""]))

    folder, private = tmp_path / "my folder", tmp_path / "private"
    for each in (folder, private):
        each.mkdir()
    (folder / "ray_current_cluster").write_text("10.0.0.1:6379")
    program = "/usr/ray/core/src/ray/raylet/raylet"
    own = (program, "--node_id=1", f"--temp_dir={folder}", "--gcs-address=10.0.0.1:6379")
    raylet(1, *own)
    raylet(2, program, f"--temp_dir={private}", "--gcs-address=127.0.0.1:4000")
    raylet(3, program, f"--temp_dir={folder}", "--gcs-address=127.0.0.1:5000")
    raylet(4, "python", *own[1:])
    raylet(5, "")
    assert ray_internals.own_clusters(tmp_path / "proc") == ["10.0.0.1:6379"]
    assert services._is_raylet_process(list(own))
    source = inspect.getsource(services.start_raylet)
    for flag in ('f"--temp_dir={temp_dir}"', 'f"--gcs-address={gcs_address}"'):
        assert flag in source
    assert Path(utils.get_ray_address_file(str(folder))) == folder / "ray_current_cluster"


def test_tune_would_run_in_another_process_through_ray_client() -> None:
    """Where it changes copies of the scheduler and the ledger, so such an address is refused."""
    source = inspect.getsource(ray.tune.Tuner.__init__)
    assert "self._is_ray_client = ray.util.client.ray.is_connected()" in source
    assert "self._remote_tuner = _force_on_current_node(" in source


def test_ray_installs_its_handler_of_sigterm_in_the_main_thread_only() -> None:
    """It would end the command with status 15; `cluster` starts Ray in another thread."""
    source = inspect.getsource(ray.init)
    place = source.index("ray._private.utils.set_sigterm_handler(sigterm_handler)")
    condition = "if threading.current_thread() is threading.main_thread():\n"
    assert source[:place].rstrip(" ").endswith(condition)


def test_ray_reads_the_mode_of_authentication_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    try:
        for mode in ("token", "disabled"):
            ray_internals.set_authentication_mode(mode)
            meant = getattr(_raylet.AuthenticationMode, mode.upper())
            assert _raylet.get_authentication_mode() == meant
            assert os.environ["RAY_AUTH_MODE"] == mode
    finally:
        monkeypatch.undo()
        _raylet.Config.initialize("")


def test_the_longest_folder_of_ray_has_room_for_its_sockets() -> None:
    session = "session_2026-01-31_23-59-59_999999_4194304"
    assert 'f"session_{date_str}_{os.getpid()}"' in inspect.getsource(node_module)
    names = {"plasma_store", "raylet"}
    for file in (Path(ray.__file__).parent / "dashboard" / "modules").rglob("*.py"):
        names |= {f"dash_{name}" for name in re.findall(r"class (\w+Head)\(", file.read_text())}
    longest = max(names, key=len)
    assert longest == "dash_PlatformEventsHead"
    path = f"{'x' * ray_internals.LONGEST_FOLDER}/{session}/sockets/{longest}"
    assert len(path) == 107
    utils.validate_socket_filepath(path)


@pytest.mark.parametrize(
    "folder", ["{base}/" + "x" * 40, "relative", "/proc/none", "{base}/" + "ä" * 12]
)
def test_a_local_ray_gets_a_short_private_folder_where_its_usual_one_does_not_do(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder.format(base="/tmp"))
    deleted: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda function, *each, **_: deleted.append(each))
    ray_internals.use_short_folder()
    own = Path(os.environ["RAY_TMPDIR"])
    assert re.fullmatch(r"/tmp/sweep-ray-\w{8}", str(own))
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert len(str(own / "ray")) <= ray_internals.LONGEST_FOLDER
    assert deleted == [(str(own),)]
    own.rmdir()


def test_a_local_ray_keeps_its_usual_folder_where_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", short)
    ray_internals.use_short_folder()
    assert os.environ["RAY_TMPDIR"] == short
    shutil.rmtree(short)


def test_the_end_of_a_server_of_the_local_ray_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "self.all_processes: dict = {}" in inspect.getsource(Node.__init__)
    source = inspect.getsource(ray_constants)
    for name in ("gcs_server", "raylet"):
        assert f'= "{name}"' in source
    gcs, raylet = Mock(), Mock()
    gcs.process.poll.return_value = raylet.process.poll.return_value = None
    processes = {"gcs_server": [gcs], "raylet": [raylet], "log_monitor": [Mock()]}
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes=processes))
    assert ray_internals.ended_process() is None
    raylet.process.poll.return_value = -9
    assert ray_internals.ended_process() == "raylet"
    gcs.process.poll.return_value = 1
    assert ray_internals.ended_process() == "gcs_server"
    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_internals.ended_process() is None


def test_what_is_left_out_at_the_end_is_what_ray_and_tune_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "atexit.register(shutdown, _exiting_interpreter=True)" in inspect.getsource(worker)
    assert "atexit.register(_unregister_all)" in inspect.getsource(registry)
    left_out: list[Any] = []
    added: list[Any] = []
    monkeypatch.setattr(atexit, "unregister", left_out.append)
    monkeypatch.setattr(atexit, "register", added.append)
    ray_internals.forget()
    assert left_out == [worker.shutdown, registry._unregister_all]
    assert len(added) == 1


def test_a_local_ray_takes_the_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(worker, "_global_node", None)
    ray_internals.stay_on_loopback()
    assert os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0"
    assert services.get_node_ip_address() in ("127.0.0.1", "::1")


def test_the_autoscaler_of_a_local_ray_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameters(Node.kill_monitor) == ["self", "check_alive"]
    node = Mock(spec=Node)
    monkeypatch.setattr(worker, "_global_node", node)
    ray_internals.end_autoscaler()
    node.kill_monitor.assert_called_once_with(check_alive=False)
    monkeypatch.setattr(worker, "_global_node", None)
    ray_internals.end_autoscaler()


def test_names_that_ray_gives_the_head_node_and_its_configuration() -> None:
    assert common.HEAD_NODE_RESOURCE_NAME == ray_internals.HEAD_NODE_RESOURCE
    source = inspect.getsource(cluster_info._is_ray_cluster)
    assert f'Path("~/{ray_internals.AUTOSCALER_CONFIG}")' in source


# Nodes.


def test_draining_nodes_are_the_keys_of_ray_s_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(state, GlobalState)
    assert "Dict[str, int]" in str(inspect.signature(GlobalState.get_draining_nodes))
    monkeypatch.setattr(GlobalState, "get_draining_nodes", lambda self: {"one": 0, "two": 5})
    assert ray_internals.draining_nodes() == {"one", "two"}


def test_the_client_that_drains_nodes_has_its_methods_and_constants() -> None:
    # `GcsClient` forwards to it.
    assert "timeout" in parameters(_raylet.InnerGcsClient.get_all_node_info)
    assert parameters(_raylet.InnerGcsClient.drain_node)[1:5] == [
        "node_id",
        "reason",
        "reason_message",
        "deadline_timestamp_ms",
    ]
    assert gcs_pb2.GcsNodeInfo.ALIVE == 0
    assert autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION") == 2
    assert "node_manager_address" in gcs_pb2.GcsNodeInfo.DESCRIPTOR.fields_by_name


# Processes of Tune's trials.


@pytest.mark.parametrize("is_local", [True, False])
def test_only_on_a_joined_cluster_do_trials_get_an_environment_of_their_own(
    is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one they run in processes that Ray has started in advance.

    A joined cluster needs one for the time in which a stopped trial may free its model.
    """
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")
    for name in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE"):
        monkeypatch.setattr(class_cache, name, getattr(class_cache, name).copy())
    ray_internals.set_trial_environment(is_local)

    class Trainable:
        pass

    cache = class_cache._ActorClassCache()  # type: ignore[no-untyped-call]
    options = cache.get(Trainable)._default_options  # type: ignore[no-untyped-call]
    if is_local:
        assert not options["runtime_env"]
    else:
        assert options["runtime_env"]["env_vars"]["TUNE_FUNCTION_THREAD_TIMEOUT_S"] == "30"


def test_every_death_of_an_actor_reaches_tune_as_the_one_it_handles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = RayActorManager._actor_task_failed
    assert parameters(original) == ["self", "tracked_actor_task", "exception"]
    assert re.findall(r"isinstance\(exception, (\w+)\)", inspect.getsource(original)) == [
        "RayActorError",
        "RayTaskError",
    ]
    received: list[Exception] = []
    monkeypatch.setattr(
        RayActorManager,
        "_actor_task_failed",
        lambda self, tracked_actor_task, exception: received.append(exception),
    )
    ray_internals.accept_every_actor_death()
    ray_internals.accept_every_actor_death()  # the second call changes nothing
    task_error = RayTaskError("f", "traceback", ValueError("no"), ip="127.0.0.1")
    for error in (OutOfMemoryError("low on memory"), task_error, KeyError("not Ray's")):
        RayActorManager._actor_task_failed(Mock(), Mock(), error)
    assert [type(error) for error in received] == [RayActorError, RayTaskError, KeyError]
    assert "OutOfMemoryError" in str(received[0])
    assert "low on memory" in str(received[0])


def test_a_tune_trial_has_its_actor_and_the_file_of_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("train", stub=True)
    assert trial.temporary_state.ray_actor is None
    assert isinstance(Trial.error_file, property)
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    ray_internals.kill_process(trial)
    assert killed == []
    trial.temporary_state.ray_actor = "actor"
    ray_internals.kill_process(trial)
    assert killed == ["actor"]

    (tmp_path / "error.txt").write_text("The actor died.")
    dead = SimpleNamespace(error_file=str(tmp_path / "error.txt"))
    assert ray_internals.death_message(dead) == "The actor died."
    assert ray_internals.death_message(SimpleNamespace(error_file=None)) == (
        "The worker process died."
    )


# Worker groups of Ray Train.


def test_the_group_trainer_omits_one_of_ray_s_usual_callbacks(tmp_path: Path) -> None:
    from ray.train import RunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def names(trainer_class: Any) -> list[str]:
        trainer = trainer_class(
            lambda: None, run_config=RunConfig(storage_path=str(tmp_path), name="group")
        )
        return [type(callback).__name__ for callback in trainer._create_default_callbacks()]

    usual = names(DataParallelTrainer)
    assert usual.count("PlacementGroupCleanerCallback") == 1
    usual.remove("PlacementGroupCleanerCallback")
    assert names(ray_internals.group_trainer()) == usual


def test_a_group_s_processes_get_the_address_of_this_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENV_VARS_TO_PROPAGATE", set(constants.ENV_VARS_TO_PROPAGATE))
    monkeypatch.setenv("RAY_ADDRESS", "other")
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert "RAY_ADDRESS" not in constants.get_env_vars_to_propagate()
    ray_internals.give_group_ray_address()
    assert constants.get_env_vars_to_propagate()["RAY_ADDRESS"] == "127.0.0.1:6379"


def test_the_causes_of_a_group_s_failure_are_found_inside_ray_s_errors() -> None:
    cause, death = ValueError("the cause"), RayActorError(error_msg="died")
    user = exceptions.UserExceptionWithTraceback(cause, "traceback")
    health = exceptions.WorkerHealthCheckFailedError("failed", death)
    group = WorkerGroupError("failed", {0: user, 1: health})
    assert ray_internals.root_causes(group) == [cause, death]
    task_error = RayTaskError("f", "traceback", cause, ip="127.0.0.1")
    assert ray_internals.root_causes(ControllerError(task_error)) == [cause]
    assert ray_internals.root_causes(cause) == [cause]


# Placement groups.


def test_a_placement_group_is_found_by_its_id_in_hex(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "bundles_to_node_id" in inspect.getsource(GlobalState)
    group_id = ray.PlacementGroupID.from_random()
    assert isinstance(ray_internals._group(group_id.hex()), PlacementGroup)
    assert ray_internals._group(group_id.hex()).id == group_id
    asked: list[Any] = []

    def table(group: PlacementGroup) -> dict[str, Any]:
        asked.append(group.id)
        return {"bundles_to_node_id": {0: "one", 1: "two", 2: "one"}}

    # Not by attribute: `ray.util.placement_group` is also the name of a function.
    monkeypatch.setattr(
        importlib.import_module("ray.util.placement_group"), "placement_group_table", table
    )
    assert ray_internals.nodes_of_group(group_id.hex()) == {"one", "two"}
    assert ray_internals.nodes_of_group("") == set()
    assert asked == [group_id]
    assert parameters(remove_placement_group) == ["placement_group"]
