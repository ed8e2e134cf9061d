"""A FastMCP server that does nothing, as the baseline of the benchmarks."""

from fastmcp import FastMCP

mcp = FastMCP("empty")


@mcp.tool
async def nothing() -> str:
    """Do nothing."""
    return ""


if __name__ == "__main__":
    mcp.run(transport="stdio", show_banner=False)
