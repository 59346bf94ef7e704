"""Predictions for image files equal those for the stored images; errors name their cause."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.data.decode import read_image
from orchestrator.errors import UsageError
from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import open_ledger
from orchestrator.ledger.records import Trial
from orchestrator.predict import __main__ as predict
from orchestrator.predict import find
from orchestrator.predict.model import from_checkpoint, load
from orchestrator.sweep import outputs
from tests.orchestrator.trained import Trained, train_sweep, write_test_images
from trainables import limits
from trainables.config import TrainConfig
from trainables.data import preprocess
from trainables.data.dataset import open_split
from trainables.evaluation import classifier, grad_cam
from trainables.models import build
from trainables.training import checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path) -> Trained:
    return train_sweep(tmp_path_factory.mktemp("storage"), digits_data_dir)


def arguments(trained: Trained, *images: object, **flags: object) -> list[str]:
    given = {"storage": trained.storage, "data-dir": trained.data_dir, **flags}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["tiny", *map(str, images), *words]


def predicted(
    capsys: pytest.CaptureFixture[str], trained: Trained, *images: object, **flags: object
) -> Any:
    assert predict.main([*arguments(trained, *images, **flags), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command, which must fail with a usage error; return its error text."""
    assert predict.main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Check that no file in these folders is created, deleted or changed."""

    def state() -> dict[str, tuple[int, int]]:
        files = [path for folder in folders for path in folder.rglob("*")]
        return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()}

    before = state()
    yield
    assert state() == before


def test_a_file_and_its_stored_image_have_the_same_prediction(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    """The reference is the model built by hand, with the preprocessing of validation."""
    files, pixels = write_test_images(trained.data_dir, tmp_path, 5)
    answer = predicted(capsys, trained, *files)
    weights, _, _ = checkpoint.load(trained.checkpoint)
    model = build.build_model(
        trained.config, num_classes=10, in_channels=1, read_weights=False
    ).eval()
    model.load_state_dict(weights["model"])
    shift, scale = trained.manifest.mean[0], trained.manifest.std[0]
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2) / 255
    images = torch.nn.functional.interpolate(images, size=(32, 32), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        expected = model((images - shift) / scale).softmax(dim=1)
    for file, got, own in zip(files, answer["predictions"], expected, strict=True):
        assert got["image"] == str(file)
        values, classes = own.topk(5)
        assert got["labels"] == [str(int(k)) for k in classes]
        assert got["probabilities"] == pytest.approx(values.tolist(), abs=1e-5)


def test_the_trained_model_knows_most_digits(trained: Trained) -> None:
    pixels, labels = open_split(trained.data_dir / "digits", "test")
    model = from_checkpoint(trained.checkpoint, trained.manifest, {})
    found = load(model).probabilities(pixels)
    assert found.shape == (len(labels), 10)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(labels)), abs=1e-5)
    assert (found.argmax(axis=1) == labels).mean() > 0.8


def test_predictions_of_several_batches_are_in_the_order_of_the_images(trained: Trained) -> None:
    pixels, _ = open_split(trained.data_dir / "digits", "test")
    model = from_checkpoint(trained.checkpoint, trained.manifest, {})
    model_of_checkpoint = load(model)
    assert model_of_checkpoint.batch_size == 64
    count = model_of_checkpoint.batch_size + 3
    at_once = model_of_checkpoint.probabilities(pixels[:count])
    alone = np.concatenate(
        [model_of_checkpoint.probabilities(pixels[i : i + 1]) for i in range(count)]
    )
    assert at_once == pytest.approx(alone, abs=1e-5)
    assert model_of_checkpoint.probabilities(pixels[:0]).shape == (0, 10)


def test_a_prediction_uses_the_cpus_of_this_process(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself torch uses as many threads as there are cores, also under a quota."""
    before = torch.get_num_threads()
    monkeypatch.setattr(limits, "num_cpus", lambda: 1)
    torch.set_num_threads(2)
    try:
        load(from_checkpoint(trained.checkpoint, trained.manifest, {}))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_batches_of_large_images_are_small(trained: Trained) -> None:
    model = load(from_checkpoint(trained.checkpoint, trained.manifest, {}))
    sizes = [
        replace(model, config=replace(model.config, image_size_px=side)).batch_size
        for side in (64, 224, 600, 4096)
    ]
    assert sizes == [64, 41, 5, 1]


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "webp", "tif"])
def test_images_of_any_size_and_format_are_classified(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path, kind: str
) -> None:
    _, pixels = write_test_images(trained.data_dir, tmp_path, 1)
    large = Image.fromarray(pixels[0].squeeze(-1)).resize((200, 200), Image.Resampling.BICUBIC)
    wide = Image.new("RGB", (320, 200))
    wide.paste(large.convert("RGB"), (60, 0))
    wide.save(tmp_path / f"wide.{kind}")
    plain = predicted(capsys, trained, tmp_path / "digit_0.png")["predictions"][0]
    answer = predicted(capsys, trained, tmp_path / f"wide.{kind}")["predictions"][0]
    assert answer["labels"][0] == plain["labels"][0]
    assert answer["probabilities"][0] == pytest.approx(plain["probabilities"][0], abs=0.15)


def test_the_best_trial_is_used_or_the_best_of_a_variant(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    files, pixels = write_test_images(trained.data_dir, tmp_path, 1)
    best = predicted(capsys, trained, *files)["model"]
    assert (best["variant"], best["trial"], best["sweep"]) == ("cnn3", "cnn3-000", "tiny")
    assert best["signature"] == trained.config.signature()
    assert best["value"] == trained.value
    assert best["epoch"] == int(trained.checkpoint.name.removeprefix("epoch_")) + 1  # from 1
    answer = predicted(capsys, trained, *files, variant="cnn2")
    assert answer["model"]["variant"] == "cnn2"
    # Its averaged weights are the ones that validation evaluated.
    with_average = next(trained.paths.root.glob("trials/*/attempt_1/*/average.safetensors"))
    weights, _, state = checkpoint.load(with_average.parent)
    name = next(iter(weights["model"]))
    assert not torch.equal(weights["average"][name], weights["model"][name])
    config = TrainConfig.from_dict(state["config"])
    model_of_checkpoint = classifier.load_classifier(with_average, config, trained.manifest)
    assert answer["predictions"][0]["probabilities"][0] == pytest.approx(
        float(model_of_checkpoint.probabilities(pixels).max()), abs=1e-6
    )


def trial(**values: Any) -> Trial:
    given = {"status": "complete", "stage": "search", "best_value": 0.5, "config": {}, **values}
    unset = {name: None for name in Trial.__dataclass_fields__}
    return Trial(**{**unset, "signature": f"of {values.get('planned_seq')}", **given})


@pytest.mark.parametrize(("mode", "expected"), [("max", 2), ("min", 1)])
def test_the_best_trial_is_complete_and_has_the_best_value(mode: str, expected: int) -> None:
    trials = [
        trial(planned_seq=1, best_value=0.1),
        trial(planned_seq=2, best_value=0.8),
        trial(planned_seq=3, best_value=0.8),
        trial(planned_seq=4, best_value=0.9, status="failed"),
        trial(planned_seq=5, best_value=None),
        trial(planned_seq=6, best_value=0.95, status="stopped"),
    ]
    best = ranking.best_trial(trials, mode)
    assert best is not None
    assert best.planned_seq == expected
    assert ranking.best_trial(trials[3:5], mode) is None


def again(origin: Trial, planned_seq: int, value: float | None, **values: Any) -> Trial:
    """A final trial of the configuration of `origin`; without a value it has no validation."""
    of = {"variant": origin.variant, "params": origin.params, "origin": origin.signature}
    config = {"validation_fraction": 0.0 if value is None else 0.1}
    given = {"planned_seq": planned_seq, "best_value": value, "config": config, **of, **values}
    return trial(stage="final", **given)


def searched(variant: str, planned_seq: int, value: float) -> Trial:
    params = {"lr": planned_seq / 100}
    given = {"planned_seq": planned_seq, "number": planned_seq, "best_value": value}
    return trial(variant=variant, params=params, **given)


def test_the_final_trials_of_a_variant_represent_it() -> None:
    """A final trial without a validation split has the value of the trial it repeats."""
    a, b = searched("a", 1, 0.9), searched("b", 2, 0.95)
    finals_b = [again(b, 3, 0.7), again(b, 4, 0.85), again(b, 5, 0.99, status="failed")]
    assert ranking.best_trial([a, b], "max") is b
    assert ranking.best_trial([a, b, *finals_b], "max") is a
    assert ranking.best_trial([b, *finals_b], "max") is finals_b[1]
    assert ranking.best_trial([a, b, *finals_b, again(a, 6, 0.8)], "max") is finals_b[1]
    whole = again(b, 7, None)
    assert ranking.best_trial([a, b, *finals_b, whole], "max") is whole


def test_final_trials_of_a_configuration_that_is_no_longer_the_best_are_not_used() -> None:
    old, new = searched("a", 1, 0.80), searched("a", 5, 0.82)
    finals_old = [again(old, 2, 0.81)]
    assert ranking.best_trial([old, *finals_old], "max") is finals_old[0]
    assert ranking.best_trial([old, *finals_old, new], "max") is new
    finals_new = [again(new, 6, 0.79), again(new, 7, 0.795)]
    assert ranking.best_trial([old, *finals_old, new, *finals_new], "max") is finals_new[1]


def test_the_table_shows_labels_and_percentages(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(trained.data_dir, tmp_path, 2)
    answer = predicted(capsys, trained, *files)["predictions"]
    assert predict.main(arguments(trained, *files)) == 0
    text = capsys.readouterr().out
    epoch = int(trained.checkpoint.name.removeprefix("epoch_")) + 1
    value = f"val_top1 {trained.value:.1%}"
    assert f"cnn3 of the sweep 'tiny' (cnn3-000, epoch {epoch}, {value})" in text
    for one in answer:
        assert f"{one['probabilities'][0]:.1%}" in text


def test_a_picture_is_written_whole(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(trained.data_dir, tmp_path, 3)
    for ending in (".png", ".svg"):
        predicted(capsys, trained, *files, picture=tmp_path / f"drawn{ending}")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.width > 500
        assert picture.height > 3 * 200
    svg = (tmp_path / "drawn.svg").read_text()
    assert svg.count("<image") >= 3
    assert list(tmp_path.glob(".drawn*")) == []


def test_the_maps_equal_those_of_the_report(trained: Trained) -> None:
    """As `grad_cam` computes them for the preprocessed images, one by one or in batches."""
    pixels, _ = open_split(trained.data_dir / "digits", "test")
    model = load(from_checkpoint(trained.checkpoint, trained.manifest, {}))
    classes = np.full(model.batch_size + 2, 3)
    maps = model.activation_maps(pixels[: len(classes)], classes)
    assert maps is not None
    assert maps.shape == (len(classes), 2, 2)  # 32 px after three times conv and pool
    assert maps.min() == 0.0
    assert maps.max() == 1.0
    prepare = preprocess.preparation(trained.config, trained.manifest, torch.device("cpu"))
    last = torch.from_numpy(pixels[len(classes) - 1 : len(classes)].copy())
    expected = grad_cam.activation_maps(model.model, prepare(last, None), torch.tensor([3]))
    assert expected is not None
    assert maps[-1] == pytest.approx(expected[0].numpy(), abs=1e-4)


def test_a_picture_of_a_model_without_maps_has_no_column_of_maps(
    capsys: pytest.CaptureFixture[str],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, _ = write_test_images(trained.data_dir, tmp_path, 1)
    predicted(capsys, trained, *files, picture=tmp_path / "with.png")
    monkeypatch.setattr(grad_cam, "activation_maps", lambda *_: None)
    predicted(capsys, trained, *files, picture=tmp_path / "without.png")
    with Image.open(tmp_path / "with.png") as left, Image.open(tmp_path / "without.png") as right:
        assert left.width > right.width


def test_all_bad_images_are_named_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(trained.data_dir, tmp_path, 2)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(files[0].read_bytes()[:60])
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    empty = tmp_path / "empty"
    bad = [tmp_path / "text.jpg", tmp_path / "gone.png", tmp_path / "cut.png", empty]
    with untouched(trained.storage, trained.data_dir, tmp_path):
        words = arguments(trained, files[0], *bad, files[1], picture=tmp_path / "p.png")
        error = refused(capsys, *words)
    assert f"'{tmp_path}/text.jpg' cannot be used: it is no image in a known format" in error
    assert f"There is no image '{tmp_path}/gone.png'" in error
    assert f"'{tmp_path}/cut.png' cannot be used" in error
    assert f"There is no image in the folder '{empty}'" in error
    assert "to classify the other 2" in error


def test_a_folder_stands_for_the_images_in_it(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    files, _ = write_test_images(trained.data_dir, photos, 2)
    (photos / "notes.txt").write_text("not read")
    (photos / ".DS_Store").write_text("not read")
    found = predicted(capsys, trained, photos)
    assert [entry["image"] for entry in found["predictions"]] == sorted(map(str, files))


def test_an_unknown_sweep_lists_the_known_ones(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    with untouched(trained.storage):
        error = refused(capsys, "tinny", "x.png", "--storage", trained.storage)
        assert "There is no sweep named 'tinny' in " in error
        assert "Existing: tiny. Did you mean 'tiny'?" in error
        error = refused(capsys, "../tiny", "x.png", "--storage", trained.storage)
        assert "There is no sweep named '../tiny' in " in error
        assert "Existing: tiny." in error
        error = refused(capsys, trained.storage / "tiny", "x.png", "--storage", tmp_path)
        assert f"That path is a sweep: give its name, `tiny --storage {trained.storage}`." in error
    error = refused(capsys, "tiny", "x.png", "--storage", tmp_path / "none")
    assert "Existing: none." in error
    assert not (tmp_path / "none").exists()
    files, _ = write_test_images(trained.data_dir, tmp_path, 1)
    error = refused(capsys, *arguments(trained, *files, variant="cnn33"))
    assert "Unknown variant of this sweep 'cnn33'. Known: cnn2, cnn3." in error


def test_an_unknown_run_creates_no_store(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    with untouched(trained.storage):
        error = refused(capsys, "0" * 32, "x.png", "--storage", trained.storage)
    assert "There is no MLflow store at sqlite:///" in error
    assert "--tracking-uri" in error


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Trained:
    """A copy of the sweep, to be damaged."""
    storage = tmp_path / "copy"
    shutil.copytree(trained.storage, storage)
    at = storage / trained.checkpoint.relative_to(trained.storage)
    return Trained(storage, trained.data_dir, trained.config, at, trained.value)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named(
    capsys: pytest.CaptureFixture[str], copy: Trained, tmp_path: Path, name: str, damage: str
) -> None:
    file = copy.checkpoint / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    files, _ = write_test_images(copy.data_dir, tmp_path, 1)
    with untouched(copy.storage):
        error = refused(capsys, *arguments(copy, *files, picture=tmp_path / "p.png"))
    assert str(copy.checkpoint) in error
    assert not (tmp_path / "p.png").exists()


def test_a_missing_checkpoint_is_named(
    capsys: pytest.CaptureFixture[str], copy: Trained, tmp_path: Path
) -> None:
    shutil.rmtree(copy.checkpoint)
    files, _ = write_test_images(copy.data_dir, tmp_path, 1)
    error = refused(capsys, *arguments(copy, *files))
    assert f"cnn3-000 is not in {copy.paths.trial(copy.config.signature())}" in error


def test_a_damaged_ledger_is_named(
    capsys: pytest.CaptureFixture[str], copy: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(copy.data_dir, tmp_path, 1)
    copy.paths.ledger.write_bytes(b"no database" * 100)
    with untouched(copy.storage):
        error = refused(capsys, *arguments(copy, *files))
    assert f"{copy.paths.ledger} is not a readable ledger" in error


def test_a_sweep_without_a_model_is_refused(
    capsys: pytest.CaptureFixture[str], copy: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(copy.data_dir, tmp_path, 1)
    ledger = open_ledger(copy.paths.ledger)
    for own in ledger.trials():
        ledger.start_attempt(own.signature, resumed_from=None, micro_batch_size=0)
        ledger.end_attempt(own.signature, 2, outcome="failed", trial_status="failed")
    ledger.close()
    assert "The sweep 'tiny' has no model yet" in refused(capsys, *arguments(copy, *files))


def test_another_dataset_than_the_trained_one_is_refused(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(trained.data_dir, tmp_path, 1)
    other = tmp_path / "data" / "digits"
    shutil.copytree(trained.data_dir / "digits", other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 12}))
    words = [*arguments(trained, *files), "--data-dir", other.parent]
    assert "is not the dataset that the model was trained on" in refused(capsys, *words)
    words = [*arguments(trained, *files), "--data-dir", tmp_path / "empty"]
    assert "holds no prepared dataset" in refused(capsys, *words)


def test_a_dataset_at_an_address_is_fetched(
    capsys: pytest.CaptureFixture[str],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This ledger does not hold the manifest; the environment says where things are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SWEEP_DATA_DIR", trained.data_dir.absolute().as_uri())
    monkeypatch.setenv("SWEEP_STORAGE", str(trained.storage))
    files, _ = write_test_images(trained.data_dir, tmp_path, 1)
    assert predict.main(["tiny", str(files[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["dataset"] == "digits"
    empty = (tmp_path / "empty").as_uri()
    assert "holds no prepared dataset" in refused(capsys, "tiny", files[0], "--data-dir", empty)


def test_a_recorded_manifest_makes_the_dataset_unnecessary(
    capsys: pytest.CaptureFixture[str], copy: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(copy.data_dir, tmp_path, 1)
    ledger = open_ledger(copy.paths.ledger)
    ledger.put("manifest", asdict(copy.manifest))
    ledger.close()
    with_data = predicted(capsys, copy, *files)
    without = Trained(copy.storage, tmp_path / "empty", copy.config, copy.checkpoint, copy.value)
    assert predicted(capsys, without, *files) == with_data


@pytest.mark.parametrize(
    ("picture", "expected"),
    [("p.doc", "must end in .png, .jpg, .pdf, .svg"), ("no/p.png", "There is no folder no")],
)
def test_an_invalid_picture_path_is_refused_first(
    capsys: pytest.CaptureFixture[str], picture: str, expected: str
) -> None:
    assert expected in refused(capsys, "tiny", "x.png", "--picture", picture)


def test_a_picture_does_not_replace_an_image(
    capsys: pytest.CaptureFixture[str], trained: Trained, tmp_path: Path
) -> None:
    files, _ = write_test_images(trained.data_dir, tmp_path, 1)
    with untouched(tmp_path):
        error = refused(capsys, *arguments(trained, *files, picture=files[0]))
    assert "would replace the image" in error


def test_too_many_images_for_a_picture_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    images = ["x.png"] * (find.MAX_IN_PICTURE + 1)
    assert "at most 64 images; got 65" in refused(capsys, "a", *images, "--picture", "p.png")


def test_a_sweep_in_a_remote_storage_is_used_from_another_machine(
    capsys: pytest.CaptureFixture[str],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine without a local copy of the sweep fetches its ledger and one checkpoint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files, _ = write_test_images(trained.data_dir, tmp_path, 1)
    here = predicted(capsys, trained, *files)
    store = tmp_path / "store"
    shutil.copytree(trained.paths.root, store / "tiny")
    stored = store / "tiny" / "ledger.sqlite"  # as the driver puts it there
    content = stored.read_bytes()
    stored.write_bytes(content + f"\nsha256:{hashlib.sha256(content).hexdigest()}\n".encode())
    with untouched(store):
        assert predicted(capsys, trained, *files, storage=store.as_uri()) == here
        error = refused(capsys, "tinny", *files, "--storage", store.as_uri())
    assert "Existing: tiny. Did you mean 'tiny'?" in error
    stored.write_bytes(b"no database" * 100)
    error = refused(capsys, *arguments(trained, *files, storage=store.as_uri()))
    assert f"The copy of the ledger at {store.as_uri()}/tiny/ledger.sqlite is damaged" in error


def test_help_imports_no_libraries() -> None:
    code = (
        "import sys, orchestrator.predict.__main__, orchestrator.predict.mlflow_model\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'timm', 'PIL', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_colour_images_become_grey_for_a_grey_dataset_and_grey_ones_colour(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (40, 20), 77).save(tmp_path / "grey.png")
    red = read_image(tmp_path / "red.png", "red", (8, 8, 1))
    assert (red.shape, red.min(), red.max()) == ((8, 8, 1), 76, 76)  # 0.299 of 255, ITU-R 601
    grey = read_image(tmp_path / "grey.png", "grey", (8, 8, 3))
    assert (grey.shape, grey.min(), grey.max()) == ((8, 8, 3), 77, 77)
    assert (read_image(tmp_path / "grey.png", "grey", (8, 8, 1)) == 77).all()


def test_an_exported_model_appears_whole_or_not_at_all(copy: Trained, tmp_path: Path) -> None:
    target = tmp_path / "exported" / "model"
    (copy.checkpoint / "model.safetensors").write_bytes(b"cut")
    with (
        closing(open_ledger(copy.paths.ledger)) as ledger,
        pytest.raises(UsageError, match=r"model\.safetensors is damaged"),
    ):
        outputs.export_best(ledger, copy.paths, copy.manifest, target)
    assert not target.parent.exists()
