"""How one request was answered (RFC 9211): one value, for the client's header and for the log."""

from dataclasses import dataclass
from typing import Literal

Result = Literal["HIT", "MISS", "FOLLOW", "REVALIDATED", "STALE", "BYPASS", "ERROR"]


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The parameters of RFC 9211 §2, under their names. A request is a hit, or forwarded, or refused (neither)."""

    hit: bool = False
    fwd: str | None = None
    """Why upstream was asked: uri-miss, vary-miss, stale or request (§2.2). None: it was not."""
    fwd_status: int | None = None
    """Upstream's status. None where it gave none; a 200 is left out where nothing was stored before."""
    stored: bool | None = None
    """Whether the body that this request fetched is stored. None where it fetched none."""
    collapsed: bool = False
    ttl: int | None = None
    """Seconds of freshness left; negative once the answer is stale."""
    detail: str | None = None
    """A token that says more, such as no-space or unreachable (§2.8)."""
    asked: str | None = None
    """Whom an error is of, where that is not one server that is asked by everybody alike (fleet.name_of)."""

    def header(self) -> str:
        """The value of the Cache-Status field."""
        parts = ["fetchonce"]
        if self.hit:
            parts.append("hit")
        if self.fwd is not None:
            parts.append(f"fwd={self.fwd}")
        if self.fwd_status is not None:
            parts.append(f"fwd-status={self.fwd_status}")
        if self.stored is not None:
            parts.append("stored" if self.stored else "stored=?0")
        if self.collapsed:
            parts.append("collapsed")
        if self.ttl is not None:
            parts.append(f"ttl={self.ttl}")
        if self.detail is not None:
            parts.append(f"detail={self.detail}")
        if self.asked is not None:
            parts.append(f"asked={self.asked}")
        return "; ".join(parts)

    @property
    def result(self) -> Result:
        """The result code of an answer with a body, for the log. An answer that is an error is logged as ERROR."""
        if self.hit:
            return "HIT" if self.ttl is None else "STALE"
        if self.fwd is None:
            return "ERROR"
        if self.collapsed:
            return "FOLLOW"
        if self.stored is not None:
            return "MISS" if self.stored else "BYPASS"
        if self.fwd_status == 304:
            return "REVALIDATED"
        # Upstream failed, and what is stored was served. Without a status or a detail it answered a HEAD.
        return "BYPASS" if self.fwd_status is None and self.detail is None else "STALE"
