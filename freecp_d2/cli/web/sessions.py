"""Sessions, each with its picture, words and last answer, and the one model behind them all."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data import Vocabulary
from ...predictor import EncodedImage, FreeCPPredictor, Segmentation
from .inputs import check_thresholds, check_words, load_picture

CACHE_BYTES = 2 * 2**30
"""What the encoded pictures of all sessions may occupy. The longest unused go first."""
SESSIONS_LIVE = 1800
"""Seconds without use until a session's picture and words are forgotten, its page open or not."""

log = logging.getLogger(__name__)


@dataclass
class Session:
    """A user's picture, CLIP's part of it, and the words that were last asked for.

    Attributes:
        path: of the upload. It holds the hash of the file's bytes.
        encoded: what FreeCP sees; None where it is to be encoded first.
        names, background, thresholds: what was last asked for.
        base: the base method's answer to that.
        words: all vocabularies that the session has asked for.
    """

    path: str
    encoded: EncodedImage | None = None
    names: list[str] | None = None
    background: bool | str | list[str] = False
    thresholds: tuple[float, ...] = ()
    base: Segmentation | None = None
    words: set[Vocabulary] = field(default_factory=set)


@dataclass(eq=False)
class Request:
    """A request that waits for the model or has it.

    Attributes:
        session_id: of its session; None where it has none.
        keep: whether its session may be kept: not without a session, nor once that is forgotten.
        words: all vocabularies that it has asked for.
    """

    session_id: str | None
    keep: bool
    words: set[Vocabulary] = field(default_factory=set)


@dataclass
class Answer:
    """What the page shows of one request.

    Attributes:
        path: of the picture.
        base, purified: the base method alone, and with FreeCP.
        redundancy_threshold: that `purified` was made with.
        encode_seconds: of encoding the picture and of the base method, which encodes it in its own
            way; None where neither was done again.
        text_seconds: of the words; next to nothing where they were known.
        segment_seconds: of FreeCP without either.
        background: the names that what is none of the classes goes by.
    """

    path: str
    base: Segmentation
    purified: Segmentation
    redundancy_threshold: float
    encode_seconds: float | None
    text_seconds: float
    segment_seconds: float
    background: tuple[str, ...] = ()


class SessionStore:
    """One model for all sessions, one request at a time. Each session sees its own picture only.

    Attributes:
        sessions: id -> session, the longest unused first.

    Args:
        cache_bytes: how much the encoded pictures may occupy. The last one is kept in any case.
    """

    def __init__(self, predictor: FreeCPPredictor, cache_bytes: int = CACHE_BYTES):
        self.predictor = predictor
        self.cache_bytes = cache_bytes
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self._example: Session | None = None
        self._expired: deque[str] = deque(maxlen=1000)
        self._requests: list[Request] = []
        self._unused: set[Vocabulary] = set()
        self._lock = threading.Lock()  # of all the above, for moments
        self._turn = threading.Lock()  # of the model, as long as it works

    def show_example(self, path: str, names: list[str], *thresholds: float) -> Answer:
        """Segment the picture that sessions :meth:`begin` with; it is kept for good."""
        with self._served(None) as request:
            self._example = Session(path)
            return self._answer(request, self._example, names, False, *thresholds)

    def begin(self, session_id: str | None) -> None:
        """Give a new session the example that its page shows."""
        with self._lock:
            if session_id and session_id not in self.sessions and self._example is not None:
                words = set(self._example.words)
                self.sessions[session_id] = replace(self._example, words=words)

    def segment(
        self,
        session_id: str | None,
        path: str,
        names: list[str],
        background: bool | str | list[str],
        *thresholds: float,
    ) -> Answer:
        """Segment a picture. CLIP encodes it unless it is the one that the session has.

        Args:
            session_id: None or empty: nothing of this is kept.
            background: whether there is one, by the predictor's own names for it, or these names;
                "auto": by names that are chosen for the classes.
            thresholds: of redundancy and of ambiguity.

        Raises:
            ValueError: the picture, the words or a threshold cannot be used; the message says why.
        """
        check_words(names, background)
        check_thresholds(*thresholds)
        with self._served(session_id) as request:
            session = self._session(session_id)
            if session is None or session.path != path:
                words = request.words if session is None else session.words
                session = Session(path, words=words)
            return self._answer(request, session, names, background, *thresholds)

    def segment_again(
        self, session_id: str | None, background: bool | str | list[str], *thresholds: float
    ) -> Answer:
        """Segment a session's picture with the same words.

        Raises:
            ValueError: the background or a threshold cannot be used, the picture had to make room
                for others and its file is deleted, or the session has none, or was forgotten as
                unused.
        """
        check_thresholds(*thresholds)
        with self._served(session_id) as request:
            session = self._session(session_id)
            if session is None or session.names is None:
                if session_id in self._expired:
                    raise ValueError(
                        f"Your picture and words were deleted after {SESSIONS_LIVE // 60} minutes "
                        "without use; press Segment."
                    )
                raise ValueError("There is no result of yours; press Segment.")
            check_words(session.names, background)
            return self._answer(request, session, session.names, background, *thresholds)

    def last_answer(self, session_id: str | None) -> Answer:
        """A session's last answer, made once more; errors are those of :meth:`segment_again`."""
        session = self._session(session_id) or Session("")
        thresholds = session.thresholds or (0.0, 0.0)
        return self.segment_again(session_id, session.background, *thresholds)

    def forget(self, session_id: str | None, *, unused: bool = False) -> None:
        """Drop what is kept of a session, and of a request of it that runs or waits, when it ends.

        It does not wait for the model.

        Args:
            unused: it may come back, and is then told so.
        """
        with self._lock:
            for request in self._requests:
                request.keep &= request.session_id != session_id
            session = self.sessions.pop(session_id or "", None)
            if session is not None:
                self._unused |= session.words
            if session_id and session_id in self._expired:
                self._expired.remove(session_id)
            if unused and session_id:
                self._expired.append(session_id)
        self._drop_features()

    def _session(self, session_id: str | None) -> Session | None:
        with self._lock:
            return self.sessions.get(session_id or "")

    @contextmanager
    def _served(self, session_id: str | None) -> Iterator[Request]:
        """The model for this request alone; waits for it."""
        request = Request(session_id, keep=bool(session_id))
        with self._lock:
            self._requests.append(request)
        try:
            with self._turn:
                yield request
        finally:
            with self._lock:
                self._requests.remove(request)
                self._unused |= request.words
            self._drop_features()

    def _drop_features(self) -> None:
        """Drop the text features of words of nobody who is here, unless the model works.

        Whoever has the model calls this after it, so that nothing stays.
        """
        while self._unused and self._turn.acquire(blocking=False):
            try:
                with self._lock:
                    kept = [session.words for session in self.sessions.values()]
                    kept += [self._example.words] if self._example else []
                    unused = self._unused.difference(*kept)
                    self._unused.clear()
                self.predictor.forget(unused)
            finally:
                self._turn.release()

    def _answer(
        self,
        request: Request,
        session: Session,
        names: list[str],
        background: bool | str | list[str],
        redundancy: float,
        ambiguity: float,
    ) -> Answer:
        encode_seconds = 0.0
        if session.encoded is None:
            image = load_picture(Path(session.path))
            start = time.perf_counter()
            session.encoded = self.predictor.encode(image)
            encode_seconds += time.perf_counter() - start
        with self._lock:
            if request.keep and request.session_id:
                self.sessions[request.session_id] = session
                self.sessions.move_to_end(request.session_id)

        start = time.perf_counter()
        words = self.predictor.prepare(names, background)
        text_seconds = time.perf_counter() - start
        with self._lock:
            request.words.add(words)
            session.words.add(words)
        start = time.perf_counter()
        purified = self.predictor.segment(
            session.encoded,
            words,
            redundancy_threshold=redundancy,
            ambiguity_threshold=ambiguity,
        )
        segment_seconds = time.perf_counter() - start
        base = session.base
        if base is None or (session.names, session.background) != (names, background):
            start = time.perf_counter()
            base = self.predictor.base(session.encoded.image, words)
            encode_seconds += time.perf_counter() - start
        session.names, session.background, session.base = names, background, base
        session.thresholds = redundancy, ambiguity
        self._make_room()
        log.info(
            "the picture took %.2f s, the words %.2f s, the rest %.2f s",
            *(encode_seconds, text_seconds, segment_seconds),
        )
        return Answer(
            session.path,
            base,
            purified,
            redundancy,
            encode_seconds or None,
            text_seconds,
            segment_seconds,
            words.background,
        )

    def _make_room(self) -> None:
        """Of the longest unused sessions, keep no more than the path and the words."""
        with self._lock:
            others = list(self.sessions.values())[:-1]
            total = sum(map(self._nbytes, self.sessions.values()))
            for session in others:
                occupied = self._nbytes(session)
                if occupied and total > self.cache_bytes:
                    total -= occupied
                    session.encoded = session.base = None

    def _nbytes(self, session: Session) -> int:
        """Of what a session does not share with the example."""
        example = self._example
        shared = (example.encoded, example.base) if example else ()
        return sum(nbytes(x) for x in (session.encoded, session.base) if x not in shared)


def nbytes(value: Any) -> int:
    """Bytes of the tensors and arrays that dataclasses, dicts and sequences of them hold."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        return sum(nbytes(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(nbytes, value))
    return 0
