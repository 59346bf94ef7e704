"""From a command line and a space to a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.data.known_datasets import expected_manifest
from orchestrator.errors import UsageError
from orchestrator.plan import options, resolve
from orchestrator.plan.options import SweepConfig
from orchestrator.plan.plan import Plan, VariantCost
from orchestrator.plan.resolve import make_plan
from orchestrator.plan.resume import difference
from search_spaces.space import SearchSpace
from tests.orchestrator.sweeps import parse_args, space

DIGITS = expected_manifest("digits")


def planned(
    of: SearchSpace, *argv: str, kept: dict[str, Any] | None = None, dataset: str = "digits"
) -> tuple[Plan, dict[str, VariantCost]]:
    return make_plan(parse_args(["digits", *argv]), of, expected_manifest(dataset), kept or {})


def refusal(of: SearchSpace, *argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        planned(of, *argv)
    return str(caught.value)


def test_a_plan_has_the_values_of_the_space() -> None:
    plan, facts = planned(space())
    assert (plan.trials, plan.seed, plan.dataset, plan.overrides) == (4, 0, "digits", {})
    assert plan.image_size_px == {"cnn2": 32, "cnn3": 32}
    assert list(facts) == list(plan.variants)


def test_flags_win_over_the_space() -> None:
    argv = [
        "--trials",
        "9",
        "--epochs",
        "2",
        "--seed",
        "5",
        "--variants",
        "cnn3",
        "--image-size",
        "24",
    ]
    plan, _ = planned(space(), *argv, "--workers-per-trial", "2")
    assert (plan.trials, plan.seed, plan.variants) == (9, 5, ("cnn3",))
    assert plan.image_size_px == {"cnn3": 24}
    assert plan.overrides == {"epochs": 2, "workers": 2}


def test_one_worker_is_no_change_of_the_plan() -> None:
    assert planned(space(), "--workers-per-trial", "1")[0].overrides == {}


def test_a_resumed_sweep_keeps_its_options_and_flags_replace_them() -> None:
    first = parse_args(
        ["digits", "--trials", "9", "--epochs", "2", "--image-size", "24", "--seed", "3"]
    )
    kept = json.loads(json.dumps(options.given_options(first)))
    again, _ = planned(space(), kept=kept)
    assert (again.trials, again.overrides, again.image_size_px["cnn2"], again.seed) == (
        *(9, {"epochs": 2}, 24),
        3,
    )
    more, _ = planned(space(), "--trials", "12", kept=kept)
    assert (more.trials, more.overrides) == (12, {"epochs": 2})
    assert more.identity() == again.identity()


def test_only_given_options_are_kept() -> None:
    assert options.given_options(parse_args(["digits"])) == {}
    config = SweepConfig(
        space="digits", name="x", seed=0, gpus_per_trial=0.0, variants=("cnn2",), verbose=True
    )
    assert options.given_options(config) == {
        "seed": 0,
        "gpus_per_trial": 0.0,
        "variants": ["cnn2"],
    }


def test_fewer_epochs_shrink_the_warm_up_in_proportion() -> None:
    plan, _ = planned(space(base={"epochs": 9, "warmup_epochs": 3.0}), "--epochs", "3")
    params = {"lr": 0.01, "dropout": 0.0, "batch_size": 32, "optimizer": "sgd"}
    config = plan.train_config("cnn2", 0, params)
    assert (config.epochs, config.warmup_epochs) == (3, 1.0)
    longer, _ = planned(space(base={"epochs": 9, "warmup_epochs": 3.0}), "--epochs", "90")
    config = longer.train_config("cnn2", 0, params)
    assert (config.epochs, config.warmup_epochs) == (90, 3.0)


def test_a_trials_config_is_the_spaces_the_suggestions_and_its_own_seed() -> None:
    of = space(by_variant={"cnn3": {"dropout": 0.4, "weight_decay": 0.01}})
    plan, _ = planned(of)
    params = {"lr": 0.01, "batch_size": 64, "optimizer": "adamw"}
    config = plan.train_config("cnn3", 2, params)
    assert (config.variant, config.dropout, config.weight_decay) == ("cnn3", 0.4, 0.01)
    assert (config.lr, config.batch_size, config.optimizer, config.epochs) == (
        *(0.01, 64, "adamw"),
        9,
    )
    seeds = {plan.train_config("cnn3", number, params).seed for number in range(5)}
    assert len(seeds) == 5


def test_variants_run_smallest_first() -> None:
    variants = ("efficientnet_b1", "cnn3", "efficientnet_b0", "cnn2")
    plan, facts = planned(space(variants=variants))
    sizes = [facts[name].multiply_accumulates for name in plan.variants]
    assert sizes == sorted(sizes)
    assert plan.variants[-2:] == ("efficientnet_b0", "efficientnet_b1")
    assert facts["efficientnet_b0"].parameters == 4_019_782  # 10 classes, one input channel


def test_variants_of_one_shape_run_in_one_block() -> None:
    variants = ("cnn2", "cnn3", "efficientnet_b0", "efficientnet_b1")
    alone, _ = planned(space(variants=variants))
    two_threads = {name: {"threads": 2} for name in (alone.variants[1], alone.variants[3])}
    mixed, _ = planned(space(variants=variants, by_variant=two_threads))
    order = alone.variants
    assert mixed.variants == (order[0], order[2], order[1], order[3])
    shares = {order[0]: 0.5, order[2]: 0.5}
    by_gpu, _ = planned(space(variants=variants, gpus_by_variant=shares))
    assert by_gpu.variants == mixed.variants


def test_an_unknown_variant_is_answered_with_the_nearest() -> None:
    text = refusal(space(), "--variants", "efficientnet_b00,cnn2,cnn33")
    assert text.startswith("These variants cannot be trained with these options:\n")
    assert "Did you mean 'efficientnet_b0'?" in text
    assert "Did you mean 'cnn3'?" in text
    assert len(text.splitlines()) == 3


def test_a_batch_larger_than_the_dataset_is_refused() -> None:
    text = refusal(space(params={}, base={"epochs": 9, "batch_size": 4096}))
    assert "`batch_size` (4096) exceeds the 1438 training images of digits." in text
    text = refusal(space(params={"batch_size": CategoricalDistribution([2048, 4096])}))
    assert "`batch_size` (2048) exceeds" in text
    assert text.endswith(
        "`batch_size` (4096) exceeds the 1438 training images of digits. Set a smaller batch size "
        "in a space of your own."
    )
    assert "`batch_size` (2048) exceeds" in refusal(
        space(params={"batch_size": IntDistribution(2048, 4096)})
    )
    enqueued = space(
        params={"batch_size": CategoricalDistribution([32, 4096])}, enqueued=({"batch_size": 4096},)
    )
    assert "`batch_size` (4096) exceeds" in refusal(enqueued)


def test_batch_sizes_larger_than_the_dataset_are_not_searched() -> None:
    of = space(
        params={**space().params, "batch_size": CategoricalDistribution([32, 4096, 64, 2048])},
        by_variant={"cnn3": {"batch_size": IntDistribution(30, 4090, step=10)}},
    )
    plan, _ = planned(of)
    assert plan.space.params_for("cnn2")["batch_size"] == CategoricalDistribution([32, 64])
    assert plan.space.params_for("cnn3")["batch_size"] == IntDistribution(30, 1430, step=10)
    stored = plan.identity()["space"]["params"]
    assert stored["cnn2"]["batch_size"]["attributes"]["choices"] == [32, 64]
    assert stored["cnn3"]["batch_size"]["attributes"]["high"] == 1430
    assert {name: value for name, value in plan.space.params.items() if name != "batch_size"} == {
        name: value for name, value in of.params.items() if name != "batch_size"
    }
    assert sorted(resolve.left_out(of, plan, DIGITS)) == [
        "Not searched: `batch_size` above 1430, 4096, 2048, because digits has only 1438 training "
        "images."
    ]
    assert resolve.left_out(space(), planned(space())[0], DIGITS) == []
    assert planned(space())[0].space.to_dict() == space().to_dict()


def test_a_batch_that_workers_cannot_share_is_refused_before_the_start() -> None:
    """Also one in the middle of the choices, or between the ends of a range."""
    for batches in (CategoricalDistribution([32, 33, 64]), IntDistribution(32, 64)):
        of = space(variants=("cnn2",), params={"batch_size": batches})
        assert planned(of)[0].trials == 4
        text = refusal(of, "--workers-per-trial", "2")
        assert "`batch_size` (33) must be divisible by `workers` (2)" in text
    even = space(variants=("cnn2",), params={"batch_size": IntDistribution(32, 64, step=2)})
    assert planned(even, "--workers-per-trial", "2")[0].overrides == {"workers": 2}


def test_all_problems_of_a_variant_are_named_at_once() -> None:
    params = {"batch_size": CategoricalDistribution([2049, 5000])}
    text = refusal(space(variants=("cnn2", "cnn3"), params=params), "--workers-per-trial", "2")
    [line] = text.splitlines()[1:]  # once for both
    assert line.startswith("cnn2, cnn3: ")
    assert "(2049) must be divisible" in line
    assert "(5000) exceeds" in line


def test_a_space_file_with_mistakes_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='m', dataset='digits', variants=('cnn2',), trials=0, base={})\n"
    )
    with pytest.raises(UsageError) as caught:
        resolve.load_space(str(path))
    assert "`trials` must be a whole number, 1 or more; got 0." in str(caught.value)
    assert "`base` must set `epochs`." in str(caught.value)
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        resolve.load_space("digit")


def test_a_dataset_that_is_neither_prepared_nor_known_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'mine' is not prepared.*orchestrator\.data prepare"):
        expected_manifest("mine")


def test_the_expected_manifest_of_a_known_dataset_matches_the_prepared_one(
    digits_dir: Path,
) -> None:
    from trainables.data.dataset import load_manifest

    real, expected = load_manifest(digits_dir), expected_manifest("digits")
    assert expected.images["train"] == real.images["train"]
    assert (expected.height_px, expected.width_px, expected.channels) == (
        *(real.height_px, real.width_px),
        real.channels,
    )
    assert len(expected.class_names) == len(real.class_names)


def test_a_plans_identity_is_the_same_through_json() -> None:
    of = space(
        image_size_by_variant={"cnn2": "paper"},
        params={"lr": FloatDistribution(1e-3, 1e-1, log=True)},
    )
    identity = planned(of)[0].identity()
    assert difference(json.loads(json.dumps(identity)), identity) == []


def test_differences_are_named_by_their_path() -> None:
    old = {"seed": 0, "space": {"fixed": {"cnn2": {"epochs": 9, "lr": 0.1}}, "mode": "max"}}
    new = {"seed": 1, "space": {"fixed": {"cnn2": {"epochs": 5}}, "mode": "max"}, "extra": [1]}
    assert difference(old, new) == [
        "extra: None before, [1] now",
        "seed: 0 before, 1 now",
        "space.fixed.cnn2.epochs: 9 before, 5 now",
        "space.fixed.cnn2.lr: 0.1 before, None now",
    ]
    assert difference(old, old) == []


def test_a_changed_range_is_a_difference() -> None:
    wide = planned(space(variants=("cnn2",)))[0].identity()
    params = {"lr": FloatDistribution(1e-4, 5e-2, log=True)}
    narrow = planned(space(variants=("cnn2",), params={**space().params, **params}))[0].identity()
    assert difference(wide, narrow) == [
        "space.params.cnn2.lr.attributes.high: 0.1 before, 0.05 now"
    ]


def test_final_seeds_of_a_recipe_without_a_search_are_refused() -> None:
    recipe = space(params={})
    with pytest.raises(
        UsageError, match=r"this space has nothing to search.*Choose their number with `--trials`"
    ):
        planned(recipe, "--final-seeds", "2")
    assert planned(recipe, "--final-seeds", "0")[0].num_finals == 0


def test_trials_of_a_recipe_train_on_all_images_with_final_on_all() -> None:
    plan, _ = planned(space(params={}), "--final-on-all")
    assert plan.train_config("cnn2", 0, {}).validation_fraction == 0
    assert plan.identity() != planned(space(params={}))[0].identity()
    assert planned(space(), "--final-on-all")[0].overrides == {}  # there the final ones do
    patient = space(params={}, base={"epochs": 9, "schedule": "plateau"})
    with pytest.raises(UsageError, match="cnn2, cnn3: `schedule` 'plateau' needs a validation"):
        planned(patient, "--final-on-all")


def test_a_final_trial_that_needs_a_validation_split_is_refused_without_one() -> None:
    patient = space(base={"epochs": 9, "schedule": "plateau"})
    with pytest.raises(
        UsageError, match=r"(?s)no validation split.*cnn3, cnn2: `schedule` 'plateau'"
    ):
        planned(patient, "--final-on-all", "--final-seeds", "1")


def test_imagenet_weights_are_for_the_variants_that_have_some() -> None:
    flags = ("--weights", "imagenet", "--variants", "cnn3,efficientnet_b0")
    plan, _ = planned(space(params={}), *flags)
    weights = {v: plan.train_config(v, 0, {}).weights for v in plan.variants}
    assert weights == {"cnn3": "none", "efficientnet_b0": "imagenet"}
    with pytest.raises(UsageError, match="names one model's file, but 2 variants"):
        planned(space(), "--weights", "x.safetensors")


def test_too_few_patches_for_a_transformer_are_remarked() -> None:
    names = ("vit_tiny_patch16_224", "mixer_s32_224", "cnn3", "resnet18")
    of = space(variants=names, params={})
    small = resolve.remarks(of, planned(of)[0], DIGITS)
    assert sorted(small) == [
        "mixer_s32_224 divides an image of 32 px into 1 patch only, fewer than 16. Choose a larger "
        "image size; its own is 224 px.",
        "vit_tiny_patch16_224 divides an image of 32 px into 4 patches only, fewer than 16. Choose "
        "a larger image size; its own is 224 px.",
    ]
    of = space(variants=names[:1], params={}, image_size=64)
    assert resolve.remarks(of, planned(of)[0], DIGITS) == []
