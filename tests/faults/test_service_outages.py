"""A Temporal Service that is unavailable for a while."""

import re

import pytest

from support import Refused, Service, Tools, answers_of_all_tools, mcp


async def test_the_server_recovers_when_the_service_comes_back(service: Service) -> None:
    async with mcp(service.address) as host:
        tools = Tools(host)
        with pytest.raises(Refused, match="can't be reached"):
            await tools("list_invoices")
        await service.start()
        assert await tools("list_invoices") == "There are no invoices."
        service.kill()
        for text in (await answers_of_all_tools(tools)).values():
            assert re.search(r"didn't answer in time|can't be reached", text)
        await service.start()
        assert await tools("list_invoices") == "There are no invoices."
