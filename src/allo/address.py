"""What an address of a server may be; it is shown and recorded, so it holds no secret."""

from urllib.parse import urlsplit


def why_no_address(base_url: str) -> str | None:
    """What is wrong with a server's address, in words that repeat no secret of it; None where it is good."""
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        return f"base_url of {parts.hostname}: no user, password or query belongs into it, since it is shown and recorded"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"base_url {base_url!r}: give an address such as http://localhost:8000/v1"
    return None
