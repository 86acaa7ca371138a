"""What every text source is: numbered documents, always in the same order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator


class TextSource(ABC):
    """Documents in a fixed order, so that a number finds one again after an interruption.

    A document may be empty: it keeps its number, and readers pass over it.
    """

    name: str
    """What the user types to open it."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Tells one content from another; equal for equal documents in equal order."""

    def fingerprint_like(self, stored: str) -> str:
        """The fingerprint, made the way that a stored one was."""
        return self.fingerprint()

    @abstractmethod
    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on.

        Raises:
            TextError: the source cannot be read, or what is read is not text.
        """
