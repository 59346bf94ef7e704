"""The command line of `python -m orchestrator.sweep`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import search_spaces
from orchestrator.plan.options import SweepConfig
from orchestrator.storage.paths import default_data_dir, path_or_address


def parse_args(argv: Sequence[str]) -> SweepConfig:
    """Read the command line.

    Raises:
        UsageError: a value is wrong. argparse itself exits with 2 on a wrong flag.
    """
    values = vars(_parser().parse_args(argv))
    if values["variants"] is not None:
        names = tuple(name.strip() for name in values["variants"].split(",") if name.strip())
        values["variants"] = tuple(dict.fromkeys(names))
    if values["name"] is None:
        values["name"] = Path(values["space"]).stem
    return SweepConfig(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.sweep",
        description="Search hyperparameters over a family of image classifiers.",
        epilog=f"Built-in spaces: {', '.join(search_spaces.names())}.",
    )
    parser.add_argument(
        "space",
        nargs="?",
        default="digits",
        metavar="SPACE",
        help="name of a built-in space, or the path of your own space file (default: digits)",
    )
    _add_what(parser.add_argument_group("what is trained").add_argument)
    _add_where(parser.add_argument_group("where it runs and what it leaves").add_argument)
    _add_how(parser.add_argument_group("going on, checking").add_argument)
    return parser


def _add_what(add: Callable[..., Any]) -> None:
    add("--trials", type=int, metavar="N", help="trials per variant")
    add("--epochs", type=int, metavar="N", help="epochs per trial, in place of the space's")
    add("--variants", metavar="A,B", help="only these models; any timm model name is accepted")
    add("--dataset", metavar="NAME", help="a prepared dataset, in place of the space's")
    add("--seed", type=int, metavar="N", help="of the sweep (default: 0)")
    add("--image-size", metavar="N", help="image size: native, paper or pixels, for every variant")
    add(
        "--weights",
        metavar="WHAT",
        help="none, imagenet or a safetensors file, for every variant, in place of the space's",
    )
    add(
        "--final-seeds",
        type=int,
        metavar="K",
        help="after the search, train the best of each variant again with K seeds and judge it by "
        "the test split (default: as the space says)",
    )
    add(
        "--final-on-all",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train those, or a recipe's trials, on the validation split as well (default: no)",
    )


def _add_where(add: Callable[..., Any]) -> None:
    add("--name", metavar="NAME", help="of the sweep (default: the space's)")
    add("--max-concurrent", type=int, metavar="N", help="trials at a time (default: what fits)")
    add("--gpus-per-trial", type=float, metavar="F", help="share of a GPU per trial, e.g. 0.25")
    add("--workers-per-trial", type=int, metavar="N", help="data-parallel workers per trial")
    add(
        "--data-dir",
        type=path_or_address,
        default=default_data_dir(),
        metavar="PLACE",
        help="prepared datasets: a folder, or an address that every host fetches them from once "
        "(default: SWEEP_DATA_DIR, else data)",
    )
    add(
        "--storage",
        type=path_or_address,
        default=path_or_address(os.environ.get("SWEEP_STORAGE") or "results"),
        metavar="PLACE",
        help="where sweeps live: a folder, s3://bucket/prefix or file:///folder (default: "
        "SWEEP_STORAGE, else results)",
    )
    add(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or None,
        metavar="URI",
        help="MLflow (default: MLFLOW_TRACKING_URI, else a SQLite file in the storage folder; for "
        "a storage that is not on a local disk, in this machine's cache folder, "
        "~/.cache/sweep-orchestrator)",
    )
    add("--address", metavar="ADDR", help="Ray cluster (default: RAY_ADDRESS, this host's, local)")
    add("--keep", metavar="WHAT", help="checkpoints of ended trials: best-K, last or all")
    add(
        "--budget",
        dest="budget_s",
        type=_duration_s,
        metavar="TIME",
        help="start no trial that is not expected to end within this time of now: 90m, 2h, 1h30m",
    )
    add(
        "--max-device-hours",
        type=float,
        metavar="H",
        help="start no trial with which the sweep would take more of its devices in all",
    )
    add(
        "--hang-timeout",
        dest="hang_timeout_s",
        type=float,
        default=600.0,
        metavar="S",
        help="end and retry a trial that is silent for so many seconds (default: 600)",
    )


def _add_how(add: Callable[..., Any]) -> None:
    add("--resume", action="store_true", help="go on with the sweep of that name")
    add(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --resume, try failed trials again from their last checkpoint (default: yes)",
    )
    add("--from-scratch", action="store_true", help="retry failed trials from their first epoch")
    add("--force", action="store_true", help="go on although the space or the dataset changed")
    add("--dry-run", action="store_true", help="print the plan and touch nothing")
    add(
        "--measure",
        action="store_true",
        help="first train a few steps of each model here and forecast time and memory; with "
        "--dry-run that is all",
    )
    add("--verify", action="store_true", help="check what the sweep of that name has left")
    add("--verbose", action="store_true", help="show tracebacks and library messages")


def _duration_s(text: str) -> float:
    """Return the seconds of a time such as 90s, 30m, 2h or 1h30m."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or found is None:
        raise argparse.ArgumentTypeError(f"a time is written as 90m, 2h or 1h30m; got {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds
