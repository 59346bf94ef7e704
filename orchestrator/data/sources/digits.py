"""Reads scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.data.sources.source import Contents, Split, stratified_mask

TEST_FRACTION = 0.2


def read_digits(source: Path, image_size_px: int) -> Contents:
    """Return scikit-learn's 1,797 digits, 8 x 8 grey, 0 to 16 scaled to 0 to 255.

    Source: UCI "Optical Recognition of Handwritten Digits", as `sklearn.datasets.load_digits`.
    There is no official split; 20 % of every class become the test split.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = raw.target.astype(np.int64)
    is_test = stratified_mask(labels, TEST_FRACTION)
    return Contents(
        class_names=tuple(str(name) for name in raw.target_names),
        shape=(8, 8, 1),
        splits={
            "train": Split(labels=labels[~is_test], pixels=pixels[~is_test]),
            "test": Split(labels=labels[is_test], pixels=pixels[is_test]),
        },
        extra={"held_out_fraction": TEST_FRACTION},
    )
