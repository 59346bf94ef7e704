"""EfficientNet B0 to B7, ResNet-50 and four CNNs from scratch on CIFAR-100, 32 x 32 pixels.

Command: `python -m orchestrator.sweep cifar100`
"""

from search_spaces._family import family_space

SPACE = family_space("cifar100", crop_padding_px=4)
