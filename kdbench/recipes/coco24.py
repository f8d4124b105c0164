from dataclasses import dataclass

from kdbench.recipes.coco12 import Coco12


@dataclass(frozen=True, kw_only=True)
class Coco24(Coco12):
    """The 24 epochs ("2x") of detectors on MS-COCO, with which the tables of PKD, PCKA and FGD are made; otherwise as `coco12`.

    Source: mmdetection, configs/_base_/schedules/schedule_2x.py: the rate is multiplied by 0.1 after epochs 16 and 22.
    """

    epochs: int = 24
    milestones: tuple[float, ...] = (16, 22)
