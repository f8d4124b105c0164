from __future__ import annotations

from kdbench.datasets._cifar import Cifar


class Cifar10(Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels, 10 classes.

    Stored in the data folder as cifar-10-batches-py/, the layout of its archive and of torchvision; the checksums of the archive are
    verified. Training images get a random crop after zero padding of `padding` pixels, and a random flip. `subset` keeps the first
    classes (by label) and a number of training images per class, the same for all or, with `imbalance`, long-tailed; `validation` is the
    share of held-out training images.
    Source: Krizhevsky 2009; mean and standard deviation of its training pixels, as commonly used.
    """

    title = "CIFAR-10"
    folder = "cifar-10-batches-py"
    files = {
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    }
    meta = ("batches.meta", "label_names")
    key = "labels"
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    md5 = "c58f30108f718f92721af3b95e74349a"
    content = None
    all_classes = 10
    per_class = 5000
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
