"""What a plugin may tell the kit about its driver: stricter bounds, claims within limits of the kit, and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from hetrun.ops import Embedding, Op
from hetrun.testing.tolerance import MOST_OF_EMBEDDINGS, bound


@dataclass(frozen=True)
class Expectations:
    """Returned by the hook `hetrun_conformance`. Patterns are shell patterns over checks, such as "op/matmul-Q4_1-*".

    must_run: op cases that may not be refused.
    nmse: tighter bounds on the error; a bound above the kit's own is an error.
    embeddings: by tensor type, the error of embeddings where the device keeps scales in fewer bits than the file has;
    it is shown in the report, and one above `tolerance.MOST_OF_EMBEDDINGS` is an error.
    fails_today: checks that fail for a known reason; they are shown as expected failures, and a pass is a failure then.
    """

    must_run: tuple[str, ...] = ()
    nmse: Mapping[str, float] = field(default_factory=dict)
    embeddings: Mapping[str, float] = field(default_factory=dict)
    fails_today: Mapping[str, str] = field(default_factory=dict)

    def bound(self, check: str, kit: float) -> float:
        """The bound on the error of `check`: the plugin's if it is tighter than the kit's; ValueError if looser."""
        for pattern, value in self.nmse.items():
            if fnmatchcase(check, pattern):
                if value > kit:
                    raise ValueError(f"{pattern}: a bound of {value:g} is looser than the kit's {kit:g} for {check}")
                kit = value
        return kit

    def of_op(self, op: Op) -> float:
        """The largest NMSE of one op: the kit's, or what the plugin claims for embeddings; ValueError beyond limits."""
        if not isinstance(op, Embedding) or op.weight.type.name not in self.embeddings:
            return bound(op)
        claimed = self.embeddings[op.weight.type.name]
        if claimed > MOST_OF_EMBEDDINGS:
            raise ValueError(
                f"a claim of {claimed:g} for embeddings of {op.weight.type} is beyond the {MOST_OF_EMBEDDINGS:g} "
                "that the kit allows"
            )
        return claimed

    def must_accept(self, check: str) -> bool:
        return any(fnmatchcase(check, pattern) for pattern in self.must_run)

    def known_failure(self, check: str) -> str | None:
        """The reason why `check` fails today, or None."""
        return next((reason for pattern, reason in self.fails_today.items() if fnmatchcase(check, pattern)), None)
