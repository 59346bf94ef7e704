"""The command line of `python -m orchestrator.sweep`."""

from __future__ import annotations

import argparse
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import search_spaces
from orchestrator.plan.options import SweepConfig
from orchestrator.storage.arguments import add_data_dir, add_storage, add_tracking_uri

_LONGEST_LINE = 88  # characters of the help text


def config_from(arguments: argparse.Namespace) -> SweepConfig:
    """Return the configuration that parsed arguments give; raise a `UsageError` if one is wrong."""
    values = vars(arguments)
    if values["variants"] is not None:
        names = tuple(name.strip() for name in values["variants"].split(",") if name.strip())
        values["variants"] = tuple(dict.fromkeys(names))
    if values["name"] is None:
        values["name"] = Path(values["space"]).stem
    return SweepConfig(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.sweep",
        usage="python -m orchestrator.sweep [SPACE] [options]",
        description="Search hyperparameters of image classifiers, or resume or verify a sweep.",
        epilog=f"Built-in spaces: {', '.join(search_spaces.names())}.",
        formatter_class=_formatter,
    )
    parser.add_argument(
        "space",
        nargs="?",
        default="digits",
        metavar="SPACE",
        help="a built-in search space, or the path of your own space file (default: digits)",
    )
    for title, add_all in (
        ("trials", _add_trials),
        ("evaluation on the test split", _add_evaluation),
        ("locations", _add_locations),
        ("resources and limits", _add_resources),
        ("planning, resuming and checking", _add_modes),
    ):
        add_all(functools.partial(_add, parser.add_argument_group(title)))
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    columns = shutil.get_terminal_size().columns - 2
    return argparse.HelpFormatter(prog, max_help_position=28, width=min(columns, _LONGEST_LINE))


def _add(group: Any, flag: str, help: str, **how: Any) -> None:
    """Add a flag, which the name of its value follows; with nothing else given it is a switch."""
    name, _, metavar = flag.partition(" ")
    if metavar:
        how["metavar"] = metavar
    group.add_argument(name, help=help, **(how or {"action": "store_true"}))


def _add_trials(add: Callable[..., Any]) -> None:
    space_default = "(default: the space's)"
    add("--trials N", f"trials of each variant {space_default}", type=int)
    add("--epochs N", f"epochs of each trial {space_default}", type=int)
    add(
        "--variants A,B",
        "variants to train, separated by commas: built-in ones or any model name of timm "
        f"{space_default}",
    )
    add("--dataset NAME", f"a prepared dataset {space_default}")
    add(
        "--image-size N",
        "image size of every variant: native (the dataset's), paper (each model's published size) "
        f"or a number of pixels {space_default}",
    )
    add(
        "--weights WHAT",
        f"initial weights of every variant: none, imagenet or a .safetensors file {space_default}",
    )
    add("--seed N", "the sweep's random seed (default: 0)", type=int)


def _add_evaluation(add: Callable[..., Any]) -> None:
    add(
        "--final-seeds K",
        "after the search, train the best configuration of each variant again with K seeds (the "
        "final trials) and evaluate them on the test split (default: the space's)",
        type=int,
    )
    add(
        "--final-on-all",
        "train the final trials on the train and validation splits together (default: no)",
        action=argparse.BooleanOptionalAction,
        default=None,
    )


def _add_locations(add: Callable[..., Any]) -> None:
    add("--name NAME", "the sweep's name (default: the space's, or the space file's without .py)")
    add_storage(add)
    add_data_dir(add)
    add_tracking_uri(add)
    add("--register NAME", "register the best model in MLflow under this name (default: do not)")
    add(
        "--address ADDR",
        "host:port of a Ray cluster, auto for a running one that this machine belongs to, or local "
        "for a new one on this machine (default: RAY_ADDRESS, "
        "else a running cluster that this machine belongs to, else local)",
    )


def _add_resources(add: Callable[..., Any]) -> None:
    add("--max-concurrent N", "trials that run at a time (default: as many as fit)", type=int)
    add(
        "--gpus-per-trial F",
        "GPUs of each worker of a trial; at 0.25, four share a GPU (default: the space's)",
        type=float,
    )
    add("--workers-per-trial N", "data-parallel workers of each trial (default: 1)", type=int)
    add(
        "--budget TIME",
        "start a trial only if it is expected to end within this time from now (90m, 2h, 1h30m); "
        "until --measure or the first epoch gives an estimate, start any trial before that time "
        "(default: no limit)",
        dest="budget_s",
        type=_duration_s,
    )
    add(
        "--max-device-hours H",
        "start a trial only if all trials together are expected to use at most this many "
        "device-hours; estimated as for --budget (default: no limit)",
        type=float,
    )
    add(
        "--hang-timeout S",
        "stop and retry a trial that has reported nothing for this many seconds (default: 600)",
        dest="hang_timeout_s",
        type=float,
        default=600.0,
    )
    add(
        "--keep WHAT",
        "checkpoints to keep of ended trials: best-K (those of the best K trials of each variant), "
        "last (also each trial's last one) or all (default: best-K with the space's keep_best)",
    )


def _add_modes(add: Callable[..., Any]) -> None:
    add(
        "--resume",
        "resume the sweep with this name; the flags under trials and evaluation, --gpus-per-trial, "
        "--workers-per-trial, --keep, --tracking-uri and --register default to their earlier "
        "values",
    )
    add(
        "--retry-failed",
        "with --resume, retry failed trials from their last checkpoint (default: yes)",
        action=argparse.BooleanOptionalAction,
        default=True,
    )
    add("--from-scratch", "with --resume, retry failed trials from their first epoch")
    add(
        "--force",
        "resume although the space or the dataset has changed; start although the disk may be "
        "too small",
    )
    add("--dry-run", "print the plan and start nothing; with --resume, that of the sweep to resume")
    add(
        "--measure",
        "first train a few steps of each variant on this machine and print a forecast of "
        "time, device-hours, memory and disk space; with --dry-run, start no trial and require a "
        "prepared dataset",
    )
    add(
        "--verify",
        "check the ledger, the checkpoints, the decisions and the MLflow runs of the sweep "
        "with this name, and change nothing",
    )
    add("--verbose", "show tracebacks and the output of libraries")


def _duration_s(text: str) -> float:
    """Return the seconds of a time such as 90s, 30m, 2h or 1h30m."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or found is None:
        raise argparse.ArgumentTypeError(f"a time is written as 90m, 2h or 1h30m; got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds
