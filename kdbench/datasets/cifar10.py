from __future__ import annotations

from kdbench.datasets._cifar import Cifar


class Cifar10(Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels, 10 classes.

    Lies in the data folder as cifar-10-batches-py/, the layout of its archive and of torchvision; recognised by the checksums of
    the archive. Training views are a random crop after `padding` pixels of zeros, and a flip. `subset` keeps the first classes
    (in the order of their labels) and so many training images of each; `validation` holds out that share of the training images.
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
