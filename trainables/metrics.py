"""The metrics of an epoch, without torch: the ledger's columns have these names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """The metrics of one epoch, under the same names in ledger, study, MLflow and documentation.

    Losses are mean cross-entropies in nats per image; `top1` and `top5` are fractions 0 to 1.
    With mixup or CutMix `train_top1` counts a hit on either image's label; without a validation
    split the `val_` metrics are 0. `lr` is the learning rate of the epoch's last step, `epoch_s`
    the seconds of training and validation together, `images_per_s` training images per second,
    `device_peak_gib` the peak device memory (on a CPU: the process's peak resident set), `data_s`
    the seconds of preparing training batches (gathering, augmenting, normalizing; on a GPU of
    issuing that) and `val_s` those of validation, both part of `epoch_s`, and `checkpoint_s` those
    of writing the checkpoint, which are not.
    """

    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_top5: float
    lr: float
    epoch_s: float
    images_per_s: float
    device_peak_gib: float
    data_s: float
    val_s: float
    checkpoint_s: float

    def to_dict(self) -> dict[str, float]:
        """Return the metrics by name."""
        return asdict(self)


METRIC_NAMES: tuple[str, ...] = tuple(item.name for item in fields(EpochMetrics))


def is_fraction(metric: str) -> bool:
    """Return whether a metric of an epoch is a fraction, printed as percent."""
    assert metric in METRIC_NAMES
    return metric.endswith(("top1", "top5"))


def metric_heading(metric: str) -> str:
    """Return the heading of a column of a metric's values, with its unit."""
    return f"{metric}, %" if is_fraction(metric) else metric


def metric_text(metric: str, value: float) -> str:
    """Return a metric's value as it is printed, without its unit."""
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:.4f}"


def metric_with_unit(metric: str, value: float) -> str:
    """Return a metric's value as it is printed in a sentence."""
    return f"{metric_text(metric, value)} %" if is_fraction(metric) else metric_text(metric, value)
