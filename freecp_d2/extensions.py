"""What a config puts on top of FreeCP's words and views; nothing by default."""

from dataclasses import dataclass

from detectron2.config import CfgNode

from .adapters import AdapterBuilder, Views, build_adapter, configured_views
from .background import NOT_CHOSEN, BackgroundChoice, configured_choice
from .decorrelation import check_decorrelation
from .relations import Relations, configured_relations


@dataclass(frozen=True)
class Extensions:
    """What is read of a vocabulary, and how an image is seen, beside METHOD.md's.

    Attributes:
        adapter: builds what changes the text features by the images; None: they stay.
        views: in what ways each image is seen; None: in its windows, whose plain mean is taken.
        background: how names of the background are found.
        decorrelation: see :func:`freecp_d2.decorrelation.decorrelate`; of the template features.
        relations: see :func:`freecp_d2.relations.load_relations`.

    Raises:
        ValueError: decorrelation out of range.
    """

    adapter: AdapterBuilder | None = None
    views: Views | None = None
    background: BackgroundChoice = NOT_CHOSEN
    decorrelation: float = 0.0
    relations: Relations = frozenset()

    def __post_init__(self) -> None:
        check_decorrelation(self.decorrelation)

    @property
    def one_by_one(self) -> bool:
        """Whether images have to come one at a time, in their order."""
        return self.adapter is not None or self.views is not None


NO_EXTENSIONS = Extensions()


def configured_extensions(cfg: CfgNode) -> Extensions:
    """Those of MODEL.FREECP's keys.

    Raises:
        FileNotFoundError, ValueError: no such adapter, file, or value; the message names the key.
    """
    return Extensions(
        build_adapter(cfg),
        configured_views(cfg),
        configured_choice(cfg),
        cfg.MODEL.FREECP.DECORRELATION,
        configured_relations(cfg),
    )
