"""Turns Arrow files into augmented batches.

`dataset` opens a prepared dataset, `batches` feeds it to a device, `preprocess` normalises and
augments with `augment`, `randaugment` and `mixing`.
"""
