"""EfficientNet B0 to B7, ResNet-50 and four CNNs from scratch on Tiny ImageNet, 64 x 64 pixels.

Command: `python -m orchestrator.sweep tinyimagenet`
"""

from search_spaces._family import family_space

SPACE = family_space("tinyimagenet", crop_padding_px=8)
