"""What an address of a server may be; it is shown and recorded, so it holds no secret."""

from urllib.parse import urlsplit


def why_no_address(base_url: str) -> str | None:
    """What is wrong with a server's address, in words that repeat no secret of it; None where it is good."""
    try:
        parts = urlsplit(base_url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket without its other, a port that is no number
        parts, is_good = None, False
    if parts is not None and parts.hostname and ("@" in parts.netloc or set("?#") & set(base_url)):
        return (
            f"base_url of {parts.hostname}: no user, password, query or fragment belongs into it, since it is shown "
            "and recorded"
        )
    if not is_good or not base_url.isprintable() or " " in base_url:
        # What a secret may stand beside is not repeated.
        shown = "" if set("@?#") & set(base_url) else f" {base_url!r}"
        return f"base_url{shown}: give an address such as http://localhost:8000/v1"
    return None
