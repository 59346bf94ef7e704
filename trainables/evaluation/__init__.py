"""Evaluates trained models.

`held_out` evaluates the test split, `scoring` computes metrics, `speed` measures inference time,
`grad_cam` draws activation maps, `classifier` classifies single images.
"""
