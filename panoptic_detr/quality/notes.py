"""Things worth saying about an evaluation that do not stop it, as counts by kind with a few examples."""

from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 3


@dataclass
class Notes:
    """How often each kind of oddity occurred, and its first examples in sorted order.

    The size does not depend on how many oddities there are, and merging gives the same notes in any order.

    Attributes:
        kinds: what happened to (how often, up to three examples).
    """

    kinds: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, kind: str, examples: Iterable[str]) -> None:
        """Note one oddity per example."""
        rows = list(examples)
        if rows:
            self.merge(Notes({kind: (len(rows), tuple(sorted(rows)[:EXAMPLES]))}))

    def merge(self, other: "Notes") -> None:
        """Add the notes of another part."""
        for kind, (count, examples) in other.kinds.items():
            mine, known = self.kinds.get(kind, (0, ()))
            self.kinds[kind] = (mine + count, tuple(sorted(known + examples)[:EXAMPLES]))

    def lines(self) -> list[str]:
        """One sentence per kind."""
        return [
            f"{kind}: {count} ({', '.join(examples)}{', ...' if count > len(examples) else ''})"
            for kind, (count, examples) in sorted(self.kinds.items())
        ]
