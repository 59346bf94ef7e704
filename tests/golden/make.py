"""`python -m tests.golden.make`: write the golden files anew, from the code as it is.

Only for a change that is meant to alter identities or numbers; the tests compare with what is kept.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainables.config import SIGNATURE_SCHEMA, TrainConfig, choices, field_names

FOLDER = Path(__file__).parent
SIGNATURES = FOLDER / "signatures.json"
LOSSES = FOLDER / "loss_cnn3_digits_cpu.json"

DEFAULTS = TrainConfig(
    variant="efficientnet_b0",
    dataset="digits",
    dataset_fingerprint="06029e7a61040290",
    epochs=5,
    seed=1,
    image_size_px=32,
)

# A second legal value, of fields where the one that `other_value` makes up would be refused.
OTHER_VALUES = {"workers": 2, "weights": "imagenet", "validation_fraction": 0.2, "batch_size": 64}


def other_value(name: str) -> Any:
    """Return a legal value of the field that is not the one `DEFAULTS` has."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    value = getattr(DEFAULTS, name)
    if allowed := choices(name):
        return next(choice for choice in allowed if choice != value)
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 0.9 or 0.5
    return value + "x"


def signatures() -> dict[str, Any]:
    """Return the signatures of the defaults and of every field changed, with the configurations."""
    changed = replace(DEFAULTS, **{name: other_value(name) for name in field_names()})
    return {
        "schema": SIGNATURE_SCHEMA,
        "of_the_defaults": DEFAULTS.signature(),
        "signatures": [
            {"signature": config.signature(), "config": config.to_dict()}
            for config in (DEFAULTS, changed)
        ],
    }


def losses(digits_dir: Path) -> list[float]:
    """Return the training losses of five steps of cnn3 on digits, one batch per epoch."""
    from tests.trainables.digits_trials import digits_config, train

    config = digits_config(
        digits_dir,
        epochs=5,
        steps_per_epoch=1,
        batch_size=64,
        lr=0.05,
        schedule="constant",
        weight_decay=1e-4,
        label_smoothing=0.1,
    )
    return [end.metrics.train_loss for end in train(config, digits_dir)]


def main() -> None:
    """Write all golden files."""
    from orchestrator.data.prepare import prepare

    SIGNATURES.write_text(json.dumps(signatures(), indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        digits_dir = prepare("digits", data_dir=Path(folder), progress=False)
        golden = {"tolerance_relative": 1e-4, "train_loss": losses(digits_dir)}
    LOSSES.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
