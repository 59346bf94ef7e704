"""Pretrained weights: where they are looked for, and how strictly they are loaded."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.trainables.models.test_build import config
from trainables.models.build import build_model
from trainables.models.pretrained import (
    WEIGHTS_DIR_VARIABLE,
    WeightsError,
    find_weights,
    load_weights,
)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, no cache of this machine's user."""
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def build(variant, classes=10, channels=3, image_size_px=32, **values):
    return build_model(
        config(variant, image_size_px=image_size_px, **values),
        num_classes=classes,
        in_channels=channels,
    )


def saved(model, path):
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def b0_state():
    """Stands for the published file: 1000 classes, with values that no fresh model has."""
    torch.manual_seed(1)
    model = timm.create_model("tf_efficientnet_b0")
    model.bn1.running_mean.fill_(0.25)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_users_folder_comes_first_and_the_classifier_is_replaced(offline, b0_state):
    save_file(b0_state, offline / "tf_efficientnet_b0.aa_in1k.safetensors")
    model = build("efficientnet_b0", weights="imagenet")
    loaded = model.state_dict()
    assert loaded["classifier.weight"].shape == (10, 1280)
    same = [name for name in b0_state if torch.equal(loaded[name], b0_state[name])]
    assert len(same) == len(b0_state) - 2  # all but the classifier's weight and bias


def test_grey_models_sum_the_first_kernels_colours(offline, b0_state):
    save_file(b0_state, offline / "tf_efficientnet_b0.aa_in1k.safetensors")
    model = build("efficientnet_b0", channels=1, weights="imagenet")
    expected = b0_state["conv_stem.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(model.conv_stem.weight, expected)


def test_a_path_works_in_place_of_imagenet(tmp_path, b0_state):
    save_file(b0_state, tmp_path / "mine.safetensors")
    model = build("efficientnet_b0", classes=1000, weights=str(tmp_path / "mine.safetensors"))
    assert torch.equal(model.classifier.weight, b0_state["classifier.weight"])
    assert model.bn1.eps == 1e-3


def test_a_pretrained_model_can_be_built_without_reading_weights():
    model = build_model(
        config("efficientnet_b0", weights="imagenet"),
        num_classes=10,
        in_channels=3,
        read_weights=False,
    )
    assert model.bn1.eps == 1e-3


def test_resnet50_loads_the_published_weights_completely(tmp_path):
    published = timm.create_model("resnet50")
    path = saved(published, tmp_path / "resnet50.safetensors")
    model = build("resnet50", classes=1000, weights=str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), published.parameters(), strict=True)
    )


def test_resnet50_mlp1024_loads_the_published_backbone_and_keeps_its_own_head(tmp_path):
    published = timm.create_model("resnet50")
    path = saved(published, tmp_path / "resnet50.safetensors")
    model = build("resnet50_mlp1024", weights=str(path))
    assert torch.equal(model.layer4[2].conv3.weight, published.layer4[2].conv3.weight)
    again = saved(model, tmp_path / "own.safetensors")
    other = build("resnet50_mlp1024", classes=7, weights=str(again))
    assert torch.equal(other.fc[0].weight, model.fc[0].weight)  # the hidden layer fits and is kept
    assert other.fc[3].weight.shape == (7, 1024)


def test_own_cnns_load_their_own_files(tmp_path):
    model = build("cnn3", image_size_px=22)
    path = saved(model, tmp_path / "cnn3.safetensors")
    same = build("cnn3", image_size_px=22, weights=str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True)
    )
    with pytest.raises(WeightsError, match=r"Of another shape: hidden\.0\.weight"):
        build("cnn3", image_size_px=32, weights=str(path))


def test_timms_own_conversion_fits_position_embeddings_to_the_image_size(tmp_path):
    published = timm.create_model("vit_tiny_patch16_224")
    path = saved(published, tmp_path / "vit.safetensors")
    model = build("vit_tiny_patch16_224", image_size_px=64, weights=str(path))
    assert model.pos_embed.shape == (1, 1 + 4 * 4, 192)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, published.blocks[3].mlp.fc1.weight)


def test_missing_unexpected_and_misshaped_tensors_are_named(tmp_path, b0_state):
    state = {name: tensor for name, tensor in b0_state.items() if name != "bn2.weight"}
    state["stray"] = torch.zeros(1)
    state["conv_head.weight"] = torch.zeros(2, 2, 1, 1)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="only its classifier may differ") as caught:
        build("efficientnet_b0", weights=str(tmp_path / "bad.safetensors"))
    text = str(caught.value)
    assert "Missing: bn2.weight." in text
    assert "Unexpected: stray." in text
    assert "Of another shape: conv_head.weight (2, 2, 1, 1), not (1280, 320, 1, 1)." in text


def test_a_file_without_any_classifier_is_refused(tmp_path, b0_state):
    body = {name: tensor for name, tensor in b0_state.items() if "classifier" not in name}
    save_file(body, tmp_path / "body.safetensors")
    with pytest.raises(WeightsError, match=r"Missing: classifier\.weight, classifier\.bias\."):
        build("efficientnet_b0", classes=1000, weights=str(tmp_path / "body.safetensors"))


def test_long_lists_of_keys_are_cut(tmp_path):
    path = saved(timm.create_model("resnet18"), tmp_path / "resnet18.safetensors")
    with pytest.raises(WeightsError, match=r"and \d+ more\. Unexpected: layer1\.0"):
        build("efficientnet_b0", weights=str(path))


def test_damaged_missing_and_pickled_files_are_refused(tmp_path):
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00")
    model = timm.create_model("resnet18")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_weights(model, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match="There is no weights file"):
        load_weights(model, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"loading a pickle can run any code.*save_file"):
        load_weights(model, tmp_path / "old.pth")


def test_without_a_network_the_error_names_the_file_and_its_place(offline):
    with pytest.raises(WeightsError, match="could not be downloaded") as caught:
        find_weights("tf_efficientnet_b7.aa_in1k")
    text = str(caught.value)
    assert "'model.safetensors' of 'timm/tf_efficientnet_b7.aa_in1k'" in text
    assert str(offline / "tf_efficientnet_b7.aa_in1k.safetensors") in text
    assert WEIGHTS_DIR_VARIABLE in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_offline_mode_of_the_hub_fails_within_seconds(tmp_path):
    code = (
        "import json, time, torch, timm\n"
        "from trainables.models.pretrained import WeightsError, find_weights\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    find_weights('tf_efficientnet_b0.aa_in1k')\n"
        "except WeightsError as error:\n"
        "    print(json.dumps([time.monotonic() - start, str(error)]))\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        WEIGHTS_DIR_VARIABLE: str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    seconds, text = json.loads(done.stdout)
    assert seconds < 5
    assert "OfflineModeIsEnabled" in text


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    """The hub's own client retries for 23 s when it cannot resolve the name."""
    asked = []

    def refuse(url, timeout):
        asked.append(timeout)
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(WeightsError, match="OSError: no route"):
        find_weights("resnet50.tv_in1k")
    assert len(asked) == 1
    assert asked[0] <= 5


def test_models_without_published_weights_are_refused():
    with pytest.raises(WeightsError, match="timm has no pretrained weights for 'efficientnet_b7'"):
        find_weights("efficientnet_b7")
