"""Each seed's study from its one command, on small data in the official layouts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import search_spaces
from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import ledger_of, sweep
from tests.orchestrator.data.archive_files import encoded, write_tar, write_zip

pytestmark = pytest.mark.ray

CLASSES = 4
TRAIN, TEST = 160, 24  # the largest batch of a recipe is 128
SMALL = ("--epochs", 1, "--trials", 1)

# By study: the dataset, the flags that make it a matter of seconds, and what is run then.
STUDIES: dict[str, tuple[str, tuple[object, ...], tuple[str, ...]]] = {
    "tinyimagenet_b3": (
        "tinyimagenet",
        ("--epochs", 1, "--trials", 2, "--final-seeds", 1, "--image-size", 32, "--weights", "none"),
        ("efficientnet_b3",),
    ),
    "tinyimagenet_baselines": (
        "tinyimagenet",
        (*SMALL, "--variants", "cnn2,cnn3,cnn3_bn"),
        ("cnn2", "cnn3", "cnn3_bn"),
    ),
    "cifar100_family": (
        "cifar100",
        (*SMALL, "--variants", "efficientnet_b0,efficientnet_b1"),
        ("efficientnet_b0", "efficientnet_b1"),
    ),
    "cifar10_scaling": (
        "cifar10",
        (
            *SMALL,
            "--final-on-all",
            "--image-size",
            "native",
            "--variants",
            "efficientnet_b0,efficientnet_b0_resolution",
        ),
        ("efficientnet_b0", "efficientnet_b0_resolution"),
    ),
    "cifar100_transfer": (
        "cifar100",
        (*SMALL, "--image-size", 32, "--weights", "none"),
        ("efficientnet_b0", "cnn9"),
    ),
}


def tinyimagenet(draws: np.random.Generator) -> dict[str, bytes]:
    """Members of an archive of noise."""
    root = "tiny-imagenet-200"
    wnids = [f"n{label:08d}" for label in range(CLASSES)]
    members = {
        f"{root}/wnids.txt": "".join(f"{wnid}\n" for wnid in wnids).encode(),
        f"{root}/words.txt": "".join(f"{wnid}\tthing {wnid}\n" for wnid in wnids).encode(),
    }

    def picture() -> bytes:
        return encoded(Image.fromarray(draws.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")

    for number in range(TRAIN):
        wnid = wnids[number % CLASSES]
        members[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = picture()
    lines = []
    for number in range(TEST):
        members[f"{root}/val/images/val_{number}.JPEG"] = picture()
        lines.append(f"val_{number}.JPEG\t{wnids[number % CLASSES]}\t0\t0\t63\t63\n")
    members[f"{root}/val/val_annotations.txt"] = "".join(lines).encode()
    return members


def cifar(draws: np.random.Generator, *, fine: bool) -> dict[str, bytes]:
    """Members of CIFAR-100's archive (`fine`) or CIFAR-10's, of noise."""
    folder = "cifar-100-python" if fine else "cifar-10-batches-py"

    def batch(images: int) -> bytes:
        labels = [number % CLASSES for number in range(images)]
        named: Mapping[bytes, object] = (
            {b"fine_labels": labels, b"coarse_labels": [label // 2 for label in labels]}
            if fine
            else {b"labels": labels}
        )
        pixels = draws.integers(0, 256, (images, 3072), np.uint8)
        return pickle.dumps({**named, b"data": pixels}, protocol=2)

    names = [f"thing {label}".encode() for label in range(CLASSES)]
    if fine:
        meta = {b"fine_label_names": names, b"coarse_label_names": [b"one kind", b"the other"]}
        members = {"train": batch(TRAIN), "test": batch(TEST), "meta": pickle.dumps(meta, 2)}
    else:
        members = {f"data_batch_{n}": batch(TRAIN // 5) for n in range(1, 6)}
        members |= {"test_batch": batch(TEST)}
        members["batches.meta"] = pickle.dumps({b"label_names": names, b"num_vis": 3072}, 2)
    return {f"{folder}/{name}": content for name, content in members.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives under their official names, where a sweep looks for them."""
    folder = tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    write_zip(folder / "tiny-imagenet-200.zip", tinyimagenet(draws))
    write_tar(folder / "cifar-10-python.tar.gz", cifar(draws, fine=False))
    write_tar(folder / "cifar-100-python.tar.gz", cifar(draws, fine=True))
    return folder


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_from_its_one_command_and_its_report_says_what_was_different(
    study: str, data_dir: Path, tmp_path: Path
) -> None:
    dataset, flags, variants = STUDIES[study]
    process = sweep(tmp_path, study, *flags, "--data-dir", data_dir)
    assert process.returncode == 0, process.stdout + process.stderr
    paths = SweepPaths(tmp_path / "results", study)
    ledger = ledger_of(paths)
    space = search_spaces.load(study)
    assert ledger.facts()["plan"]["dataset"] == dataset
    evaluated = ledger.evaluations()
    by_variant = {t.variant for t in ledger.trials() if t.signature in evaluated}
    assert by_variant == set(variants)
    for trial in ledger.trials():
        assert trial.status == "complete"
        # What the command does not change is the recipe.
        fixed = space.fixed_for(trial.variant)
        fixed |= {"epochs": 1, "weights": "none"}
        fixed = {k: v for k, v in fixed.items() if k not in ("warmup_epochs", "freeze_epochs")}
        assert {name: trial.config[name] for name in fixed} == fixed
    for result in evaluated.values():
        assert result["images"] == TEST == sum(map(sum, result["confusion"]))
        assert (result["superclass_top1"] is None) == (dataset != "cifar100")
    page = (paths.root / "report" / "report.html").read_text()
    text = (paths.root / "report" / "report.md").read_text()
    assert space.source
    assert space.source in text
    assert "Epochs: 1 instead of" in text
    assert f"Only a sample of the dataset was used: {TRAIN} of " in text
    for row in space.published:
        if row.variant in variants:
            assert row.label in text
    for note in space.recipe_notes:
        assert note in text
    assert "Plotly.newPlot" in page or "Plotly.react" in page
    ledger.close()
