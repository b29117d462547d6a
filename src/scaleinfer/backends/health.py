"""Whether a server on this node answers, as the fleet asks of the ones it starts."""

from __future__ import annotations

__all__ = ["health_status"]


async def health_status(url: str, *, timeout: float) -> int | None:
    """Ask a server with GET, past all proxies and following no redirect.

    Args:
        url: The whole URL of its health path.
        timeout: Seconds the answer's head may take.

    Returns:
        The HTTP status; `None` if there was no answer.
    """
    import aiohttp

    limit = aiohttp.ClientTimeout(total=timeout)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        try:
            async with session.get(url, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
