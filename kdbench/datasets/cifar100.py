from __future__ import annotations

from kdbench.datasets._cifar import Cifar


class Cifar100(Cifar):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels, 100 classes.

    Stored in the data folder as cifar-100-python/{train,test,meta}, the layout of its archive and of torchvision. Files with other
    checksums are accepted if their images and labels are the same. Augmentation, `subset` and `validation` are as in `cifar10`.
    Source: Krizhevsky 2009; mean and standard deviation as in RepDistiller.
    """

    title = "CIFAR-100"
    folder = "cifar-100-python"
    files = {"train": {"train": "16019d7e3df5f24257cddd939b257f8d"}, "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}}
    meta = ("meta", "fine_label_names")
    key = "fine_labels"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    content = "39a31ca3ec7f2af4"
    all_classes = 100
    per_class = 500
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)
