"""Class activation maps against hand computations on tiny networks, and on every kind of model."""

import pytest
import torch
from torch import nn

from tests.trainables.digits_trials import digits_config
from trainables.evaluation.grad_cam import activation_maps
from trainables.models import build


class Pooled(nn.Module):
    """The image is its own feature map; global average pooling and one linear layer."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(weights[0]), len(weights))
        self.fc.weight.data = torch.tensor(weights)

    def forward_features(self, images):
        return images

    def forward_head(self, maps):
        return self.fc(maps.mean(dim=(2, 3)))


class Squared(Pooled):
    """A head that is not linear: the squares of the pooled channels, weighted."""

    def forward_head(self, maps):
        return self.fc(maps.mean(dim=(2, 3)).square())


IMAGES = torch.tensor(
    [
        [[[1.0, 2.0], [0.0, 4.0]], [[3.0, 1.0], [2.0, 0.0]]],
        [[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [5.0, 3.0]]],
    ]
)


def test_under_average_pooling_the_map_is_cam_without_its_negative_part():
    model = Pooled([[2.0, -1.0], [-1.0, -3.0], [0.5, 1.0]])
    maps = activation_maps(model, IMAGES, torch.tensor([0, 2]))
    # 2 * first - second channel: [[-1, 3], [-2, 8]]; 0.5 * first + second: [[0.5, 1], [6, 3]].
    assert maps is not None
    assert torch.allclose(maps[0], torch.tensor([[0.0, 3 / 8], [0.0, 1.0]]))
    assert torch.allclose(maps[1], torch.tensor([[0.5, 1.0], [6.0, 3.0]]) / 6)


def test_a_channel_weighs_as_much_as_its_mean_gradient():
    model = Squared([[1.0, 1.0]])
    maps = activation_maps(model, IMAGES[:1], torch.tensor([0]))
    # d/dA of mean(A)^2 is 2 mean(A) / 4 at every place: 7/8 and 6/8.
    by_hand = 7 / 8 * IMAGES[0, 0] + 6 / 8 * IMAGES[0, 1]
    assert maps is not None
    assert torch.allclose(maps[0], by_hand / by_hand.max())


def test_the_map_is_zero_where_nothing_contributes_to_the_class():
    maps = activation_maps(Pooled([[-1.0, -1.0]]), IMAGES, torch.tensor([0, 0]))
    assert maps is not None
    assert torch.equal(maps, torch.zeros(2, 2, 2))


def test_channels_last_features_give_the_same_maps():
    class Last(Pooled):
        output_fmt = "NHWC"

        def forward_features(self, images):
            return images.permute(0, 2, 3, 1)

        def forward_head(self, maps):
            return self.fc(maps.mean(dim=(1, 2)))

    weights, classes = [[2.0, -1.0], [0.5, 1.0]], torch.tensor([0, 1])
    first, last = (activation_maps(kind(weights), IMAGES, classes) for kind in (Pooled, Last))
    assert first is not None
    assert last is not None
    assert torch.equal(first, last)


def test_cam_of_a_real_network_is_its_classifiers_weights_over_the_feature_maps(digits_dir):
    config = digits_config(digits_dir, variant="efficientnet_b0", image_size_px=64, stem_stride=1)
    torch.manual_seed(0)
    model = build.build_model(config, num_classes=10, in_channels=1).eval()
    images, classes = torch.randn(3, 1, 64, 64), torch.tensor([4, 0, 9])
    maps = activation_maps(model, images, classes)
    with torch.no_grad():
        features = model.forward_features(images)
    cam = torch.einsum("nchw,nc->nhw", features, model.classifier.weight[classes]).relu().detach()
    assert maps is not None
    assert maps.shape == (3, 4, 4)
    assert torch.allclose(maps, cam / cam.amax(dim=(1, 2), keepdim=True), atol=1e-5)


def test_no_gradient_and_no_mode_is_left_in_the_model(digits_dir):
    config = digits_config(digits_dir, variant="cnn3_bn")
    model = build.build_model(config, num_classes=10, in_channels=1).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 1, 32, 32)
    maps = activation_maps(model, images, torch.tensor([0, 1]))
    assert maps is not None
    assert not maps.requires_grad
    assert images.grad is None
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("variant", "image_size_px", "shape"),
    [
        ("cnn2", 32, (6, 6)),
        ("cnn9", 32, (4, 4)),
        ("efficientnet_b0_phi0.5", 64, (2, 2)),
        ("resnet50", 64, (2, 2)),
        ("vgg11_bn", 64, (2, 2)),
        ("inception_v3", 96, (1, 1)),
        ("efficientnet_b0", 32, (1, 1)),
        ("vit_tiny_patch16_224", 32, None),
        ("swin_tiny_patch4_window7_224", 64, (2, 2)),
        ("convnext_atto", 64, (2, 2)),
    ],
)
def test_every_network_with_a_spatial_map_is_explained(digits_dir, variant, image_size_px, shape):
    config = digits_config(digits_dir, variant=variant, image_size_px=image_size_px)
    torch.manual_seed(0)
    model = build.build_model(config, num_classes=10, in_channels=1, read_weights=False).eval()
    maps = activation_maps(
        model, torch.randn(2, 1, image_size_px, image_size_px), torch.tensor([3, 5])
    )
    if shape in (None, (1, 1)):  # one pixel says nothing of where
        assert maps is None
        return
    assert maps is not None
    assert maps.shape == (2, *shape)
    assert maps.dtype == torch.float32
    assert 0 <= maps.min() <= maps.max() <= 1
