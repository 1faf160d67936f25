"""What is classified: digits, CIFAR-10, CIFAR-100 and folders of images, as tensors."""

from gkp.data.folders import load_folder
from gkp.data.sets import DATASETS, IMAGE_SIZES, Split, fingerprint, hold_out, load, of_tensors

__all__ = ["DATASETS", "IMAGE_SIZES", "Split", "fingerprint", "hold_out", "load", "load_folder", "of_tensors"]
