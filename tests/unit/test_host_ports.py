from __future__ import annotations

import socket

import pytest

from cube.adapters.host_ports import port_free
from cube.model.spec import Protocol

KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_bound_port_is_taken_and_then_free_again(protocol: Protocol, address: str) -> None:
    with socket.socket(socket.AF_INET, KINDS[protocol]) as owner:
        owner.bind((address, 0))
        port = owner.getsockname()[1]
        if protocol is Protocol.TCP:
            owner.listen()
        assert not port_free("127.0.0.1", port, protocol)
    assert port_free("127.0.0.1", port, protocol)


def test_the_other_protocol_and_the_other_address_do_not_matter() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        assert port_free("127.0.0.1", port, Protocol.UDP)
        assert port_free("127.0.0.2", port, Protocol.TCP)


def test_a_connection_that_lingers_is_no_obstacle() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = owner.accept()
        served.close()  # the listening side closes first: its end waits in TIME_WAIT
        client.close()
    assert port_free("127.0.0.1", port, Protocol.TCP)


def test_an_address_of_another_host_asks_for_all_of_ours() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        assert not port_free("192.0.2.1", port, Protocol.TCP)
    assert port_free("192.0.2.1", port, Protocol.TCP)
