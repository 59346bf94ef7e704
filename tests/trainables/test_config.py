"""The identity of a trial: what changes its signature, what is refused, what survives a journey."""

import json
import pickle
from dataclasses import MISSING, FrozenInstanceError, fields, replace
from typing import get_type_hints

import pytest

from tests.golden.make import DEFAULTS, SIGNATURES, other_value
from trainables.config import SIGNATURE_SCHEMA, TrainConfig, field_names

REQUIRED = {"variant", "dataset", "dataset_fingerprint", "epochs", "seed", "image_size_px"}


def config(**values) -> TrainConfig:
    return replace(DEFAULTS, **values)


@pytest.mark.parametrize("name", field_names())
def test_every_field_changes_the_signature_unless_it_cannot_affect_the_result(name):
    changed = replace(config(), **{name: other_value(name)})
    (field,) = (item for item in fields(TrainConfig) if item.name == name)
    affects_result = field.metadata.get("affects_result", True)
    assert (changed.signature() != config().signature()) == affects_result


def test_only_the_micro_batch_is_left_out_of_the_signature():
    left_out = {f.name for f in fields(TrainConfig) if not f.metadata.get("affects_result", True)}
    assert left_out == {"micro_batch_size"}


def test_signatures_of_known_configurations_never_change():
    golden = json.loads(SIGNATURES.read_text())
    assert golden["schema"] == SIGNATURE_SCHEMA
    for entry in golden["signatures"]:
        assert TrainConfig.from_dict(entry["config"]).signature() == entry["signature"]
    # A new field, or a new default, gives every stored result a new key: raise the schema with it.
    assert config().signature() == golden["of_the_defaults"]


def test_the_order_of_fields_does_not_matter():
    values = config(lr=0.3, momentum=0.8).to_dict()
    backwards = TrainConfig.from_dict(dict(reversed(values.items())))
    assert backwards == config(lr=0.3, momentum=0.8)
    assert backwards.signature() == config(lr=0.3, momentum=0.8).signature()


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (0, 0.0), (0.0, -0.0)])
def test_equal_configurations_have_equal_signatures(one, other):
    assert config(lr=one) == config(lr=other)
    assert config(lr=one).signature() == config(lr=other).signature()


def test_configurations_survive_json_and_pickle():
    made = config(lr=1e-3, optimizer="lamb", hflip=True, stem_stride=1, micro_batch_size=4)
    through_json = TrainConfig.from_dict(json.loads(json.dumps(made.to_dict())))
    assert through_json == made
    assert through_json.signature() == made.signature()
    assert pickle.loads(pickle.dumps(made)) == made
    assert set(made.to_dict()) == set(field_names())


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        config().lr = 1.0


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValueError, match="`epochs`") as caught:
        config(epochs=0, lr=-1.0, optimizer="sdg", hflip="yes", dropout=True)
    text = str(caught.value)
    assert "`epochs` must be finite and 1 or more; got 0." in text
    assert "`lr` must be finite and 0.0 or more; got -1.0." in text
    assert "`optimizer` must be one of 'sgd', 'nesterov', 'rmsprop'" in text
    assert "got 'sdg'." in text
    assert "`hflip` must be of type bool; got 'yes'." in text
    assert "`dropout` must be of type float; got True." in text


@pytest.mark.parametrize(
    "name", [n for n, hint in get_type_hints(TrainConfig).items() if hint is float]
)
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), True, "0.1", None, 10**400]
)
def test_real_numbers_must_be_finite_numbers(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        config(**{name: value})


@pytest.mark.parametrize(
    "name", [n for n, hint in get_type_hints(TrainConfig).items() if hint is int]
)
@pytest.mark.parametrize("value", [1.0, True, "1", None, float("nan"), -1])
def test_whole_numbers_must_be_whole_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        config(**{name: value})


@pytest.mark.parametrize("value", [2.0, True, 3, "2"])
def test_choices_are_compared_by_type_too(value):
    with pytest.raises(ValueError, match="`stem_stride` must be one of 1, 2; got"):
        config(stem_stride=value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"batch_size": 10, "workers": 4}, r"`batch_size` \(10\) must be divisible by `workers`"),
        ({"warmup_epochs": 6.0}, r"`warmup_epochs` \(6.0\) must not exceed `epochs` \(5\)"),
        (
            {"validation_fraction": 0.0, "schedule": "plateau"},
            "`schedule` 'plateau' needs a validation loss",
        ),
        (
            {"validation_fraction": 0.0, "early_stop_patience_epochs": 2},
            "`early_stop_patience_epochs` needs a validation loss",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values, text):
    with pytest.raises(ValueError, match=text):
        config(**values)


def test_unknown_and_missing_fields_are_named_together():
    values = {**config().to_dict(), "learning_rate": 0.1, "momentun": 0.9}
    del values["seed"], values["variant"]
    with pytest.raises(ValueError, match="Unknown training parameter") as caught:
        TrainConfig.from_dict(values)
    text = str(caught.value)
    assert "'learning_rate'" in text
    assert "'momentun'. Did you mean 'momentum'?" in text
    assert "`seed` is required." in text
    assert "`variant` is required." in text


def test_only_variant_dataset_epochs_seed_and_image_size_are_required():
    assert {f.name for f in fields(TrainConfig) if f.default is MISSING} == REQUIRED
