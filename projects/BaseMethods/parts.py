"""Register a part of a data set: $PART_IMAGES images of $PART_OF, at equal distances.

It is called <PART_OF>_part_<PART_IMAGES>. compare.py --images sets both.
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog


def register_part(name: str, images: int) -> str:
    """Register the part, and return its name.

    Raises:
        ValueError: `images` is not from 1 to the number of images of the data set.
    """
    part = f"{name}_part_{images}"
    count = len(DatasetCatalog.get(name))
    if not 1 <= images <= count:
        raise ValueError(f"--images is {images}; {name} has {count}, give a number up to that")

    def load() -> list[dict]:
        records = DatasetCatalog.get(name)
        return [records[i * len(records) // images] for i in range(images)]

    DatasetCatalog.register(part, load)
    metadata = MetadataCatalog.get(name).as_dict()
    del metadata["name"]
    MetadataCatalog.get(part).set(**metadata)
    return part


register_part(os.environ["PART_OF"], int(os.environ["PART_IMAGES"]))
