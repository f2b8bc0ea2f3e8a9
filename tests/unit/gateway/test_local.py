import asyncio

import pytest

from hansa.core.errors import GatewayError, SpecError
from hansa.gateway.local import LocalGateway, LocalOptions
from hansa.site import rpc


def call(site, request):
    async def work():
        gateway = LocalGateway(LocalOptions(site=site))
        try:
            return await gateway.call(request, 30.0)
        finally:
            await gateway.close()

    return asyncio.run(work())


def test_a_missing_site_file_is_lasting_and_says_where(tmp_path):
    with pytest.raises(GatewayError, match=r"no site file .*site\.yaml") as caught:
        call(tmp_path / "site.yaml", rpc.probe())
    assert not caught.value.transient
    assert "`hansa init`" in caught.value.hint


def test_a_wrong_site_file_is_told(tmp_path):
    (tmp_path / "site.yaml").write_text("name: here\nmailbux: x\n")
    with pytest.raises(SpecError, match="mailbux"):
        call(tmp_path / "site.yaml", rpc.probe())


def test_the_site_file_is_read_once(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(
        f"name: a\nscheduler: local\nmailbox: {tmp_path}/m\ntasks: {{digits: {{}}}}\n"
    )

    async def work():
        gateway = LocalGateway(LocalOptions(site=path))
        first = await gateway.call(rpc.probe(), 30.0)
        path.unlink()
        second = await gateway.call(rpc.probe(), 30.0)
        await gateway.close()
        return first["facility"], second["facility"]

    assert asyncio.run(work()) == ("a", "a")
