"""Reads scikit-learn's digits."""

from __future__ import annotations

import numpy as np

from orchestrator.data.sources.source import Contents, Part, stratified_mask

DIGITS_HELD_OUT = 0.2


def read_digits() -> Contents:
    """Return scikit-learn's 1,797 digits, 8 x 8 grey, 0..16 scaled to 0..255; 20 % held out.

    Source: UCI "Optical Recognition of Handwritten Digits", as `sklearn.datasets.load_digits`;
    the set has no official split there.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = raw.target.astype(np.int64)
    held_out = stratified_mask(labels, DIGITS_HELD_OUT)
    return Contents(
        class_names=tuple(str(name) for name in raw.target_names),
        shape=(8, 8, 1),
        splits={
            "train": Part(labels=labels[~held_out], pixels=pixels[~held_out]),
            "test": Part(labels=labels[held_out], pixels=pixels[held_out]),
        },
        extra={"held_out_fraction": DIGITS_HELD_OUT},
    )
