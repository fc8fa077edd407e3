"""Rules for a server's address, which is shown and recorded, and so may hold no secret."""

from urllib.parse import urlsplit


def why_no_address(base_url: str) -> str | None:
    """Return the fault of a server's address without repeating its secrets; None if it is valid."""
    try:
        parts = urlsplit(base_url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an unmatched bracket, or a port that is not a number
        parts, is_good = None, False
    if parts is not None and parts.hostname and ("@" in parts.netloc or set("?#") & set(base_url)):
        return (
            f"base_url of {parts.hostname}: no user, password, query or fragment belongs into it, since it is shown "
            "and recorded"
        )
    if not is_good or not base_url.isprintable() or " " in base_url:
        # Do not repeat an address that may hold a secret.
        shown = "" if set("@?#") & set(base_url) else f" {base_url!r}"
        return f"base_url{shown}: give an address such as http://localhost:8000/v1"
    return None
