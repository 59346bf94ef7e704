"""Every built-in space is usable as it is, and `check()` finds every mistake in one go."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import search_spaces
from orchestrator.ledger.ranking import is_better
from orchestrator.plan.plan import trial_seed
from search_spaces.space import Published, SearchSpace, ends, tried
from tests.orchestrator.sweeps import space
from trainables.config import TrainConfig
from trainables.models import build


def problems_of(of: SearchSpace) -> list[str]:
    with pytest.raises(ValueError, match="cannot be used") as caught:
        search_spaces.check(of)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def only_problem(**values: Any) -> str:
    [problem] = problems_of(space(**values))
    return problem


def test_a_valid_space_passes_the_check() -> None:
    search_spaces.check(space())
    search_spaces.check(
        space(params={}, trials=1, first_rung_epochs=0, keep_best=0, image_size="paper")
    )
    search_spaces.check(
        space(metric="val_loss", mode="min", gpus_per_trial=0.5, gpus_by_variant={"cnn3": 2})
    )


def test_every_mistake_is_named_at_once() -> None:
    wrong = space(
        variants=("cnn2", "cnn2"),
        trials=0,
        base={"epochs": 3, "learning_rate": 0.1, "seed": 7, "dropout": FloatDistribution(0, 1)},
        params={"lr": 0.1, "epochs": IntDistribution(1, 9), "momentun": FloatDistribution(0, 1)},
        by_variant={"cnn9": {"dropout": 0.1}, "cnn2": {"threds": 2}},
        image_size="huge",
        metric="accuracy",
        mode="best",
        rung_factor=1,
        max_attempts=True,
        gpus_per_trial=-1,
    )
    text = "\n".join(problems_of(wrong))
    for expected in (
        "In `base`: Unknown training parameter 'learning_rate'.",
        "In `base`: 'seed' is set by the sweep; remove it from the space.",
        "`base['dropout']` is a range; it belongs in `params`.",
        "`params['lr']` must be a FloatDistribution, IntDistribution or CategoricalDistribution",
        "In `params`: Unknown training parameter 'momentun'. Did you mean 'momentum'?",
        "In `by_variant['cnn2']`: Unknown training parameter 'threds'. Did you mean 'threads'?",
        "Both in `base` and in `params`: epochs.",
        "`epochs` cannot be searched",
        "Settings are given for cnn9, which `variants` does not list.",
        "`variants` must name each model once; got ('cnn2', 'cnn2').",
        "`trials` must be a whole number, 1 or more; got 0.",
        "`rung_factor` must be a whole number, 2 or more; got 1.",
        "`max_attempts` must be a whole number, 1 or more; got True.",
        "`metric` must be one of train_loss,",
        "`mode` must be 'max' or 'min'; got 'best'.",
        "An image size must be 'native', 'paper' or pixels; got 'huge'.",
        "A trial's share of GPUs must be 0 to 1, or a whole number; got -1.",
    ):
        assert expected in text
    assert len(text.splitlines()) == 17


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"base": None}, "`base` must be a dictionary with names as keys; got None."),
        ({"params": [1]}, "`params` must be a dictionary with names as keys; got [1]."),
        ({"base": {"epochs": 3, 1: 2}}, "`base` must be a dictionary with names as keys"),
        ({"by_variant": {"cnn2": 3}}, "`by_variant['cnn2']` must be a dictionary"),
        ({"variants": "cnn2"}, "`variants` must be a tuple of names; got 'cnn2'."),
        ({"variants": (1, 2)}, "`variants` must be a tuple of names; got (1, 2)."),
        ({"variants": ()}, "`variants` must name each model once; got ()."),
        ({"dataset": Path("x")}, "`dataset` must be a text"),
        ({"trials": 2.0}, "`trials` must be a whole number, 1 or more; got 2.0."),
        ({"startup_trials": "3"}, "`startup_trials` must be a whole number, 0 or more; got '3'."),
        ({"gpus_per_trial": "1"}, "A trial's share of GPUs must be 0 to 1, or a whole number"),
        ({"gpus_per_trial": math.nan}, "A trial's share of GPUs must be 0 to 1"),
        ({"gpus_by_variant": {"cnn2": 1.5}}, "or a whole number; got 1.5."),
        ({"image_size": True}, "An image size must be 'native', 'paper' or pixels; got True."),
        (
            {"image_size_by_variant": {"cnn2": 0}},
            "An image size must be 'native', 'paper' or pixels; got 0.",
        ),
        ({"base": {}}, "`base` must set `epochs`."),
        (
            {"by_variant": {"cnn2": {"epochs": IntDistribution(1, 3)}}},
            "`epochs` cannot be searched",
        ),
        (
            {"params": {"threads": IntDistribution(1, 2)}},
            "`threads` cannot be searched; a variant's trials use the same resources.",
        ),
        ({"image_size_by_variant": {"cnn9": 64}}, "Settings are given for cnn9"),
        ({"gpus_by_variant": {"cnn9": 1}}, "Settings are given for cnn9"),
        (
            {"metric": "val_loss"},
            "`metric` 'val_loss' needs `mode` 'min'; got 'max'.",
        ),
        ({"mode": "min"}, "`metric` 'val_top1' needs `mode` 'max'; got 'min'."),
    ],
)
def test_each_mistake_is_reported_with_its_rule(values: dict[str, Any], problem: str) -> None:
    assert problem in only_problem(**values)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"dropout": FloatDistribution(0.0, 1.5)}, "`dropout` must be finite and 0.0 to 0.99"),
        ({"lr": FloatDistribution(-1.0, 0.1)}, "`lr` must be finite and 0.0 or more; got -1.0."),
        (
            {"batch_size": FloatDistribution(1, 9)},
            "`batch_size` must be of type int; got 1.0, 9.0.",
        ),
        (
            {"optimizer": CategoricalDistribution(["sgd", "adma", "adam"])},
            "`optimizer` must be one of",
        ),
        ({"hflip": CategoricalDistribution([True, "no"])}, "`hflip` must be of type bool"),
    ],
)
def test_a_range_that_a_training_refuses_is_named_by_variant(
    params: dict[str, Any], expected: str
) -> None:
    [line] = problems_of(space(params=params))
    assert line.startswith("cnn2, cnn3: ")
    assert expected in line


def test_each_wrong_range_is_one_sentence() -> None:
    """With all its wrong values and all variants that it is wrong for."""
    wrong = {
        "dropout": FloatDistribution(20.0, 50.0),
        "lr": FloatDistribution(-1.0, 0.1),
        "optimizer": CategoricalDistribution(["sgd", "adma", "sdg"]),
    }
    assert problems_of(space(params=wrong, by_variant={"cnn3": {"dropout": 0.5}})) == [
        "cnn2: `dropout` must be finite and 0.0 to 0.99; got 20.0, 50.0.",
        "cnn2, cnn3: `lr` must be finite and 0.0 or more; got -1.0.",
        "cnn2, cnn3: `optimizer` must be one of 'sgd', 'nesterov', 'rmsprop', 'adam', 'adamw', "
        "'radam', 'lamb'; got 'adma', 'sdg'.",
    ]


def test_ranges_that_exclude_each_other_are_refused_wherever_they_cross() -> None:
    """Also where neither end of one range excludes the first value of the other."""
    rates = {"lr": FloatDistribution(1e-3, 0.1), "min_lr": FloatDistribution(0.0, 0.01)}
    [line] = problems_of(space(params=rates))
    assert "`min_lr` (0.01) must not exceed `lr` (0.001)." in line
    search_spaces.check(space(params={**rates, "min_lr": FloatDistribution(0.0, 1e-3)}))
    chosen = {
        "lr": CategoricalDistribution([0.1, 1e-3]),
        "min_lr": CategoricalDistribution([0.0, 0.01]),
    }
    assert "`min_lr` (0.01) must not exceed `lr` (0.001)" in only_problem(params=chosen)
    assert "`min_lr` (0.1) must not exceed `lr` (0.0001)" in only_problem(
        base={"epochs": 3, "min_lr": 0.1}, params={"lr": FloatDistribution(1e-4, 0.2)}
    )
    schedules = {
        "schedule": CategoricalDistribution(["cosine", "plateau"]),
        "validation_fraction": CategoricalDistribution([0.1, 0.0]),
    }
    assert "`schedule` 'plateau' needs a validation loss" in only_problem(params=schedules)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("learning_rate", "lr"), ("learningRate", "lr"), ("learning_rat", "lr"), ("eta", "lr")),
        *(("wd", "weight_decay"), ("weightDecay", "weight_decay"), ("decay", "weight_decay")),
        *(("batchsize", "batch_size"), ("bs", "batch_size"), ("mini_batch_size", "batch_size")),
        *(("momentun", "momentum"), ("mom", "momentum"), ("beta_1", "beta1"), ("eps", "epsilon")),
        *(("dropout_rate", "dropout"), ("drop_rate", "dropout"), ("drop_path_rate", "drop_path")),
        *(("label_smooth", "label_smoothing"), ("smoothing", "label_smoothing")),
        *(("warmup", "warmup_epochs"), ("warm_up_epochs", "warmup_epochs"), ("eta_min", "min_lr")),
        *(("opt", "optimizer"), ("scheduler", "schedule"), ("n_epochs", "epochs")),
        *(
            ("max_grad_norm", "clip_grad_norm"),
            ("horizontal_flip", "hflip"),
            ("rho", "rmsprop_alpha"),
        ),
        *(("mixup", "mixup_alpha"), ("patience", "early_stop_patience_epochs")),
    ],
)
def test_the_name_of_another_library_suggests_the_field(name: str, field: str) -> None:
    problem = only_problem(base={"epochs": 3, name: 1})
    assert f"Unknown training parameter '{name}'. Did you mean '{field}'? Known: " in problem


def test_the_names_that_a_space_may_set_are_listed_once() -> None:
    problems = problems_of(
        space(base={"epochs": 3, "lrr": 1, "xyzzy": 2}, params={"dropot": FloatDistribution(0, 1)})
    )
    assert problems[:2] == [
        "In `base`: Unknown training parameter 'lrr'. Did you mean 'lr'?",
        "In `base`: Unknown training parameter 'xyzzy'.",
    ]
    assert "'dropot'. Did you mean 'dropout'? Known: batch_size, beta1," in problems[2]
    listed = problems[2].partition("Known: ")[2].removesuffix(".").split(", ")
    assert len(problems) == 3
    assert not {"variant", "dataset", "seed", "workers", "image_size_px"} & set(listed)


def test_fields_of_the_space_among_the_hyperparameters_are_named() -> None:
    for name, field in (("image_size", "image_size"), ("model", "variants"), ("trials", "trials")):
        assert only_problem(base={"epochs": 3, name: 1}) == (
            f"In `base`: '{name}' is not a training parameter; set `{field}` of `SearchSpace` "
            "instead."
        )


def test_unknown_variants_are_named_with_the_other_mistakes() -> None:
    problems = problems_of(
        space(variants=("cnn22", "cnn3", "cnn33"), by_variant={"cnn2": {"dropout": 0.1}})
    )
    assert problems[0] == "Settings are given for cnn2, which `variants` does not list."
    assert problems[1] == "Unknown variant 'cnn22'. Did you mean 'cnn2'?"
    assert problems[2].startswith("Unknown variant 'cnn33'. Did you mean 'cnn3'? Known: cnn2,")
    assert len(problems) == 3


def test_a_fixed_value_that_a_training_refuses_is_named() -> None:
    [problem] = problems_of(
        space(variants=("cnn2",), base={"epochs": 3, "warmup_epochs": 4.0, "momentum": 0.5})
    )
    assert "`warmup_epochs` (4.0) must not exceed `epochs` (3)." in problem
    [problem] = problems_of(space(variants=("cnn2",), params={}, base={"epochs": 0}))
    assert problem.startswith("cnn2: `epochs` must be finite and 1 or more; got 0.")


def test_a_mistake_of_one_variant_names_that_one() -> None:
    problems = problems_of(space(by_variant={"cnn3": {"dropout": 7.0}}))
    assert [line.partition(":")[0] for line in problems] == ["cnn3"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("FloatDistribution(0.5, 0.1)", "low"),
        ("FloatDistribution(0.0, 0.1, log=True)", "low"),
        ("CategoricalDistribution([])", "choices"),
    ],
)
def test_a_range_that_optuna_refuses_is_reported_with_its_file(
    tmp_path: Path, source: str, expected: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"from optuna.distributions import *\nRANGE = {source}\n")
    with pytest.raises(
        ValueError, match=r"mine\.py, line \d+, cannot be read as a space: ValueError"
    ) as error:
        search_spaces.load(str(path))
    assert expected in str(error.value)


def test_a_users_own_file_is_a_space(tmp_path: Path) -> None:
    path = tmp_path / "my own.py"
    path.write_text(
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='mine', dataset='digits', variants=('cnn2',), trials=2,\n"
        "                    base={'epochs': 1})\n"
    )
    loaded = search_spaces.load(str(path))
    assert (loaded.name, loaded.trials, loaded.params_for("cnn2")) == ("mine", 2, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no space file at"),
        ("SPACE = 3", r"must define `SPACE = SearchSpace"),
        ("x = ", "cannot be read as a space: SyntaxError"),
        ("import nothing_of_that_name", "cannot be read as a space: ModuleNotFoundError"),
    ],
)
def test_a_file_without_a_space_is_refused_with_the_reason(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        search_spaces.load(str(path))


def test_an_unknown_space_is_refused_with_the_known_and_the_nearest_names() -> None:
    with pytest.raises(ValueError, match="Unknown search space 'digts'") as error:
        search_spaces.load("digts")
    assert "Did you mean 'digits'?" in str(error.value)
    assert f"Known: {', '.join(search_spaces.names())}." in str(error.value)


def test_variants_override_what_is_fixed_and_what_is_searched() -> None:
    own = space(
        base={"epochs": 9, "momentum": 0.9},
        by_variant={
            "cnn3": {"momentum": FloatDistribution(0.5, 0.9), "lr": 0.2, "weight_decay": 1e-4}
        },
    )
    assert own.fixed_for("cnn2") == {"epochs": 9, "momentum": 0.9}
    assert own.fixed_for("cnn3") == {"epochs": 9, "lr": 0.2, "weight_decay": 1e-4}
    assert sorted(own.params_for("cnn2")) == ["batch_size", "dropout", "lr", "optimizer"]
    assert sorted(own.params_for("cnn3")) == ["batch_size", "dropout", "momentum", "optimizer"]


RECIPE: dict[str, Any] = {"lr": 0.01, "dropout": 0.2, "batch_size": 64, "optimizer": "sgd"}


def test_a_recipe_is_enqueued_where_there_is_something_to_search() -> None:
    search_spaces.check(space(enqueued=(RECIPE, {**RECIPE, "lr": 0.1})))
    nothing = {"lr": 0.1, "dropout": 0.0, "batch_size": 32, "optimizer": "sgd"}
    search_spaces.check(space(enqueued=(RECIPE,), by_variant={"cnn3": nothing}))
    own = space(enqueued=(RECIPE,)).to_dict()
    assert own["enqueued"] == [RECIPE]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"enqueued": RECIPE}, "`enqueued` must be a tuple of dictionaries; got {"),
        ({"enqueued": (3,)}, "`enqueued[0]` must be a dictionary with names as keys; got 3."),
        (
            {"enqueued": (RECIPE,) * 5},
            "`trials` must be at least 5, the number of `enqueued` configurations; got 4.",
        ),
        (
            {"enqueued": ({"lr": 0.01},), "variants": ("cnn2",)},
            "cnn2: `enqueued[0]` must give exactly the searched parameters, batch_size, dropout, "
            "lr, optimizer; got lr.",
        ),
        (
            {"enqueued": ({**RECIPE, "momentum": 0.9},), "variants": ("cnn2",)},
            "got batch_size, dropout, lr, momentum, optimizer.",
        ),
        (
            {"enqueued": (RECIPE, {**RECIPE, "lr": 0.5}), "variants": ("cnn2",)},
            "cnn2: `enqueued[1]`: 'lr' must lie in its range, 0.0001 to 0.1; got 0.5.",
        ),
        (
            {"enqueued": ({**RECIPE, "lr": "high"},), "variants": ("cnn2",)},
            "'lr' must lie in its range, 0.0001 to 0.1; got 'high'.",
        ),
        (
            {"enqueued": ({**RECIPE, "optimizer": "radam"},), "variants": ("cnn2",)},
            "'optimizer' must lie in its range, one of 'sgd', 'adamw'; got 'radam'.",
        ),
        (
            {
                "enqueued": ({"batch_size": 64.0},),
                "params": {"batch_size": IntDistribution(32, 64)},
                "variants": ("cnn2",),
            },
            "`enqueued[0]`: cnn2: `batch_size` must be of type int; got 64.0.",
        ),
        ({"final_seeds": -1}, "`final_seeds` must be a whole number, 0 or more; got -1."),
        ({"source": None}, "`source` must be a text; got None."),
        ({"recipe_notes": "one"}, "`recipe_notes` must be a tuple of texts; got 'one'."),
        ({"published": ({},)}, "`published` must be a tuple of `Published`; got ({},)."),
        (
            {"published": (Published(label="theirs", variant="cnn9"),)},
            "`published[0]`: `variant` must be one of cnn2, cnn3, or None for a model that is "
            "shown for comparison; got 'cnn9'.",
        ),
        (
            {"published": (Published(label="theirs", test_top1=76.98),)},
            "`published[0]`: `test_top1` must be a fraction, 0 to 1 (0.77 for 77 %); got 76.98.",
        ),
        (
            {"published": (Published(label="theirs", val_top1=math.nan),)},
            "`val_top1` must be a fraction, 0 to 1 (0.77 for 77 %); got nan.",
        ),
        (
            {"published": (Published(label="theirs", loss=-1.0),)},
            "`loss` must be finite and 0 or more; got -1.0.",
        ),
        (
            {"published": (Published(label="theirs", flops=0.82e9),)},  # type: ignore[arg-type]
            "`flops` must be a whole number, 1 or more; got 820000000.0.",
        ),
        ({"published": (Published(label=""),)}, "`label` must be a text; got ''."),
        (
            {
                "published": (Published(label="theirs", variant="cnn2", enqueued=1),),
                "enqueued": (RECIPE,),
            },
            "`published[0]`: `enqueued` must be a number from 0 to 0; got 1.",
        ),
        (
            {"published": (Published(label="theirs", variant="cnn2", enqueued=0),)},
            "`enqueued` must be None, as no trial of cnn2 is enqueued; got 0.",
        ),
        (
            {"published": (Published(label="theirs", enqueued=0),), "enqueued": (RECIPE,)},
            "`enqueued` needs a `variant`; give one.",
        ),
    ],
)
def test_a_mistake_in_published_rows_or_enqueued_trials_is_reported_with_its_rule(
    values: dict[str, Any], problem: str
) -> None:
    assert problem in only_problem(**values)


def test_published_results_do_not_affect_the_comparison_of_spaces() -> None:
    row = Published(variant="cnn2", label="Model 1", val_top1=0.1419, parameters=13_070_472)
    told = space(published=(row,), source="a study", recipe_notes=("A note.",))
    assert told.to_dict() == space().to_dict()
    assert json.loads(json.dumps(told.published_to_dict())) == {
        "source": "a study",
        "rows": [
            {
                "label": "Model 1",
                "variant": "cnn2",
                "train_top1": None,
                "val_top1": 0.1419,
                "test_top1": None,
                "loss": None,
                "precision": None,
                "recall": None,
                "f1": None,
                "parameters": 13_070_472,
                "flops": None,
                "note": "",
                "val_is_test": False,
                "enqueued": None,
            }
        ],
        "recipe_notes": ["A note."],
    }


def test_ranges_are_checked_at_their_ends_all_choices_and_the_second_integer() -> None:
    assert tried(FloatDistribution(0.1, 0.5)) == [0.1, 0.5]
    assert tried(CategoricalDistribution(["a", "b", "c"])) == ["a", "b", "c"]
    assert tried(IntDistribution(2, 10, step=4)) == [2, 10, 6]
    assert tried(IntDistribution(2, 64, log=True)) == [2, 64, 3]
    assert tried(IntDistribution(5, 5)) == [5, 5, 5]


def test_trial_seeds_never_change() -> None:
    assert trial_seed(0, "cnn2", 0) == trial_seed(0, "cnn2", 0)
    seeds = {trial_seed(s, v, n) for s in range(9) for v in ("cnn2", "cnn3") for n in range(9)}
    assert len(seeds) == 162
    assert all(0 <= seed < 2**31 for seed in seeds)
    # Pinned, since stored trials are found by it: `printf 0/cnn2/0 | sha256sum`, 31 bits of it.
    assert trial_seed(0, "cnn2", 0) == 154_594_690


def test_is_better_follows_the_mode_and_nan_is_never_better() -> None:
    assert is_better(2, 1, "max")
    assert not is_better(1, 1, "max")
    assert is_better(1, 2, "min")
    assert not is_better(2, 1, "min")
    assert not is_better(math.nan, 1, "max")
    assert is_better(1, math.nan, "min")
    assert not is_better(math.nan, math.nan, "min")


# The built-in ones.


@pytest.fixture(params=search_spaces.names())
def built_in(request: pytest.FixtureRequest) -> SearchSpace:
    return search_spaces.load(request.param)


def test_the_documented_spaces_exist() -> None:
    assert {"cifar10", "cifar100", "digits", "tinyimagenet"} <= set(search_spaces.names())
    seeds = {"tinyimagenet_b3", "tinyimagenet_baselines", "cifar100_family", "cifar10_scaling"}
    assert seeds | {"cifar100_transfer", "scaling_grid"} <= set(search_spaces.names())
    assert not {"__init__", "space"} & set(search_spaces.names())


def test_a_built_in_space_survives_json(built_in: SearchSpace) -> None:
    assert json.loads(json.dumps(built_in.to_dict())) == built_in.to_dict()


def test_a_built_in_space_has_the_name_of_its_file() -> None:
    for name in search_spaces.names():
        assert search_spaces.load(name).name == name


def configs(own: SearchSpace, variant: str) -> list[TrainConfig]:
    """Return the configurations at both ends of every range."""
    ranges = own.params_for(variant)
    low = {name: ends(value)[0] for name, value in ranges.items()}
    high = {name: ends(value)[-1] for name, value in ranges.items()}
    suggestions = [low, high]
    suggestions += [
        {**low, name: value} for name, choices in ranges.items() for value in ends(choices)
    ]
    size = own.image_size_by_variant.get(variant, own.image_size)
    native_px = {"digits": 8, "tinyimagenet": 64}.get(own.dataset, 32)
    image_size_px = build.input_size_px(variant, native_px, size)  # type: ignore[arg-type]
    return [
        own.train_config(
            variant,
            params,
            dataset=own.dataset,
            fingerprint="f",
            image_size_px=image_size_px,
            seed=0,
            overrides={},
        )
        for params in suggestions
    ]


def test_both_ends_of_every_range_make_a_configuration(built_in: SearchSpace) -> None:
    for variant in built_in.variants:
        for config in configs(built_in, variant):
            assert config.variant == variant
            assert TrainConfig.from_dict(config.to_dict()) == config


@functools.cache
def logits_shape(
    variant: str, image_size_px: int, stem_stride: int, drop_path: float
) -> torch.Size:
    config = TrainConfig(
        variant=variant,
        dataset="d",
        dataset_fingerprint="f",
        epochs=1,
        seed=0,
        image_size_px=image_size_px,
        stem_stride=stem_stride,  # type: ignore[arg-type]
        drop_path=drop_path,
    )
    with torch.device("meta"), torch.no_grad():
        model = build.build_model(config, num_classes=7, in_channels=3, read_weights=False)
        return model.eval()(torch.empty(2, 3, image_size_px, image_size_px)).shape


def test_every_variant_of_a_built_in_space_can_be_built_and_run(built_in: SearchSpace) -> None:
    """On the meta device, so it costs neither memory nor arithmetic."""
    for variant in built_in.variants:
        last = configs(built_in, variant)[1]
        shape = logits_shape(variant, last.image_size_px, last.stem_stride, last.drop_path)
        assert shape == (2, 7)
