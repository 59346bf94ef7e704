"""The whole family from scratch on CIFAR-100 at its native 32 x 32 pixels.

Command: `python -m orchestrator.sweep cifar100`
"""

from search_spaces._family import family_space

SPACE = family_space("cifar100", crop_padding_px=4)
