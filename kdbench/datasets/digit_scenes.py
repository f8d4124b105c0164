from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdbench.datasets._annotations import Annotations
from kdbench.datasets._base import left_of
from kdbench.datasets._memory import Images
from kdbench.datasets._scenes import SceneData, SceneReader, Scenes, as_they_are
from kdbench.datasets._views import draws
from kdbench.datasets.digits import Digits

SCALES = (2, 3, 4, 5)
"""How many times a digit of 8 x 8 pixels is enlarged."""
LEAST_SIDE = 8 * SCALES[-1]
WHITE = 15
"""What a shade of 0 to 16 is multiplied by."""
TRIES = 8
"""Places that are tried for a digit."""
DRAWS = 3 + 2 * TRIES
"""Random numbers for one object: class, digit, scale, and each place from above and from the left."""


class DigitScenes(Scenes):
    """Handwritten digits on black canvases of three sizes, with exact boxes: a generated set for detection that needs no download.

    `images` training and `test_images` test images are made of the digits of scikit-learn, enlarged 2 to 5 times; the digits of the two
    splits are different ones. Canvases are `sides[0]` x `sides[0]`, `sides[0]` x `sides[1]` or `sides[1]` x `sides[0]` pixels, and are not
    resized; a batch is padded with zeros to a multiple of 32. Each image has 0 to `objects` digits of the first `classes`, as many as fit
    without overlap, so that some images are empty. A box is the smallest with all the ink of its digit; there are no crowds. `validation`
    is the share of held-out training images. Everything follows from the options, so that every machine makes the same images.
    Source: digits as in the dataset `digits`; scenes are defined by kdbench.
    """

    def __init__(
        self,
        *,
        images: int = 80,
        test_images: int = 40,
        classes: int = 3,
        sides: tuple[int, int] = (72, 108),
        objects: int = 4,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        seed: int = 0,
        validation: float = 0.0,
        split_seed: int = 0,
    ):
        if not 1 <= classes <= 10 or min(images, test_images - 1, objects) < 1:
            raise ValueError("classes must be between 1 and 10, images and objects at least 1, and test_images at least 2")
        if not LEAST_SIDE <= sides[0] <= sides[1]:
            raise ValueError(f"sides are the shorter and the longer side of canvases, at least {LEAST_SIDE} pixels, not {list(sides)}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2^63 - 1, not {seed}")
        self.images, self.test_images, self.n_classes, self.sides, self.objects, self.seed = (
            images,
            test_images,
            classes,
            sides,
            objects,
            seed,
        )
        self._keep_views((as_they_are,), (sides[1], sides[1]), horizontal_flip, vertical_flip, (0.042,) * 3, (0.17,) * 3)
        self._keep(validation, split_seed)
        self.n_train = left_of(images, validation)

    def load(self, folder: Path) -> SceneData:
        digits = Digits(padding=0).load(folder)
        pool, known = self._made("train", self.images, digits.train)
        test, known_test = self._made("test", self.test_images, digits.test)
        divided = self._divided([pixels.numpy().tobytes() for pixels in pool], known)
        pixels = {"test": test, **{split: [pool[place] for place in index.tolist()] for split, index in divided.items()}}
        annotations = {"test": known_test, **{split: known.take(index) for split, index in divided.items()}}
        readers = {split: SceneReader(None, one.sizes, self.views, kept=[pixels[split]]) for split, one in annotations.items()}
        content = b"".join([*(one.numpy().tobytes() for one in (*pool, *test)), known.digest(), known_test.digest()])
        return self._data(readers, annotations, tuple(map(str, range(self.n_classes))), hashlib.sha256(content).hexdigest()[:16])

    def _made(self, split: str, count: int, digits: Images) -> tuple[list[Tensor], Annotations]:
        """The images of a split (uint8, 3 x height x breadth), and the objects in them."""
        of_class = [torch.nonzero(digits.labels == label).flatten().tolist() for label in range(self.n_classes)]
        short, long = self.sides
        sizes = ((short, short), (short, long), (long, short))
        images, found = [], []
        for number in range(count):
            key = hashlib.sha256(f"{split} {number} {self.seed}".encode()).digest()
            which, wanted, *drawn = draws(int.from_bytes(key[:8], "little"), 2 + DRAWS * self.objects)
            canvas = np.zeros(sizes[which * 3 >> 64], np.uint8)
            taken = np.zeros(canvas.shape, bool)
            for start in range(0, DRAWS * (wanted * (self.objects + 1) >> 64), DRAWS):
                of, chosen, enlarged, *places = drawn[start : start + DRAWS]
                label, scale = of * self.n_classes >> 64, SCALES[enlarged * len(SCALES) >> 64]
                digit = digits.pixels[of_class[label][chosen * len(of_class[label]) >> 64], 0].numpy()
                for tried in range(0, 2 * TRIES, 2):
                    top, left = ((side - 8 * scale + 1) * draw >> 64 for side, draw in zip(canvas.shape, places[tried:][:2], strict=True))
                    part = np.s_[top : top + 8 * scale, left : left + 8 * scale]
                    if not taken[part].any():
                        break
                else:
                    continue
                taken[part], canvas[part] = True, np.kron(digit, np.full((scale, scale), WHITE, np.uint8))
                rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
                box = (left + scale * columns[0], top + scale * rows[0], left + scale * (columns[-1] + 1), top + scale * (rows[-1] + 1))
                found.append((number, label, *box))
            images.append(torch.from_numpy(canvas).expand(3, -1, -1))
        where, labels, *boxes = np.array(found, np.int64).reshape(-1, 6).T
        corners = np.stack(boxes, 1).astype(np.float64)
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
        return images, Annotations.grouped([one.shape[1:] for one in images], where, corners, labels, areas, np.zeros(len(labels), bool))
