"""Stores the sessions of the open tabs."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lgclip.classifier.model import ImageClassifier
from lgclip.cli.studio.session import Limits, Session

MAX_SESSIONS = 32
"""Tabs whose classifiers stay in memory; the one that was idle longest is forgotten first."""


class SessionStore:
    """Stores one session per browser tab.

    Args:
        root: Folder whose sub-folders hold the files of the sessions.
        overrides: Overrides as of `lgclip build`.
        limits: What a page may send.
        classifier: Classifier that every session starts with; None for none.
    """

    def __init__(
        self,
        root: Path,
        overrides: Sequence[str] = (),
        limits: Limits | None = None,
        classifier: ImageClassifier | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._root = root
        self._overrides = overrides
        self._classifier = classifier
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()
        self._count = 0

    def get(self, key: str) -> Session:
        """Returns the session of a tab, a new one where there is none."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                self._count += 1
                # A copy, so that a change in one tab is none in another.
                classifier = None if self._classifier is None else replace(self._classifier)
                folder = self._root / f"session_{self._count}"
                session = Session(folder, self._overrides, self.limits, classifier)
                self._sessions[key] = session
            self._sessions.move_to_end(key)
            while len(self._sessions) > MAX_SESSIONS:
                _, oldest = self._sessions.popitem(last=False)
                oldest.close()
            return session

    def remove(self, key: str) -> None:
        """Forgets the session of a closed tab."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()
