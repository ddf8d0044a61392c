"""Requests whose head came before may be answered the short way, and nothing else of the connection changes."""

from __future__ import annotations

from tests.edge_agent.serving.http.device import Device, get, post, wait_until


def test_the_second_request_with_one_head_and_all_later_ones_go_the_short_way(device: Device) -> None:
    with device.connect() as client:
        assert client.ask(post("/repeats", b"ordinary")).json()["size"] == 8
        for body in (b"a second", b"in parts", b"and more"):
            assert client.ask(post("/repeats", body)).body == body
    assert device.routes.expressed == [8]


def test_what_cannot_go_the_short_way_is_admitted_and_handled(device: Device) -> None:
    with device.connect() as client:
        for _ in range(2):
            assert client.ask(post("/repeats", b"ordinary")).json()["size"] == 8
        assert client.ask(post("/repeats", b"shortcut")).body == b"shortcut"
        assert client.ask(post("/repeats", b"ordinary")).json()["size"] == 8
    assert len(device.routes.rooms) == 3
    device.routes.wait_released()


def test_errors_on_the_short_way_are_answered_and_the_connection_goes_on(device: Device) -> None:
    with device.connect() as client:
        client.ask(post("/repeats", b"ordinary"))
        refused = client.ask(post("/repeats", b"refused!"))
        assert (refused.status, refused.error) == (400, "not this")
        assert client.ask(post("/repeats", b"mistake!")).status == 500
        assert client.ask(post("/repeats", b"goes on!")).body == b"goes on!"


def test_another_head_goes_the_whole_way_again(device: Device) -> None:
    with device.connect() as client:
        for _ in range(2):
            client.ask(post("/repeats", b"ordinary"))
        assert client.ask(post("/echo", b"ordinary")).json()["path"] == "/echo"
        assert client.ask(post("/repeats", b"shortcut")).json()["path"] == "/repeats"
        assert client.ask(post("/repeats", b"shortcut")).body == b"shortcut"


def test_pipelined_requests_with_one_head_are_answered_in_order(device: Device) -> None:
    bodies = [b"body %03d" % number for number in range(50)]
    with device.connect() as client:
        client.send(b"".join(post("/repeats", body) for body in bodies))
        answers = [client.answer() for _ in bodies]
    assert answers[0].json()["size"] == 8
    assert [answer.body for answer in answers[1:]] == bodies[1:]


def test_a_body_that_comes_after_its_head_goes_the_whole_way(device: Device) -> None:
    with device.connect() as client:
        for _ in range(2):
            client.ask(post("/repeats", b"ordinary"))
        request = post("/repeats", b"shortcut")
        client.send(request[:-3])
        client.send(request[-3:])
        answer = client.answer()
        assert answer.body == b"shortcut" or answer.json()["size"] == 8  # as the pieces happened to arrive


def test_larger_bodies_with_one_head_go_the_short_way_too(device: Device) -> None:
    bodies = [bytes((number,)) * 40_000 for number in range(4)]
    with device.connect() as client:
        assert client.ask(post("/repeats", bodies[0])).json()["size"] == 40_000
        for body in bodies:
            assert client.ask(post("/repeats", body)).body == body
        declined = b"ordinary".ljust(40_000)
        assert client.ask(post("/repeats", declined)).json()["size"] == 40_000
        assert client.ask(post("/repeats", bodies[1])).body == bodies[1]
    assert len(device.routes.rooms) == 2
    device.routes.wait_released()


def test_requests_that_close_or_have_no_body_never_go_the_short_way(device: Device) -> None:
    with device.connect() as client:
        for _ in range(3):
            client.ask(get("/repeats"))
    assert device.ask(post("/repeats", b"ordinary", "Connection: close") * 2)[0].json()["size"] == 8
    assert device.routes.expressed == []


def test_a_request_that_is_joined_with_others_is_answered_as_ever(device: Device) -> None:
    with device.connect() as client, device.connect():  # the other one is what it may be joined with
        wait_until(lambda: len(device.connections) == 2)
        client.ask(post("/repeats", b"ordinary, first!"))
        for body in (b"joined, in parts", b"joined, at once!"):
            assert client.ask(post("/repeats", body)).body == body.removeprefix(b"joined, ")
        refused = client.ask(post("/repeats", b"joined, refused!"))
        assert (refused.status, refused.error) == (400, "not this")
        assert client.ask(post("/repeats", b"joined, mistake!")).status == 500
        assert client.ask(post("/repeats", b"no entry, please")).status == 403
        assert client.ask(post("/repeats", b"joined, ordinary")).json()["size"] == 16
        assert client.ask(post("/repeats", b"joined, the end.")).body == b"the end."
    device.routes.wait_released()


def test_who_is_alone_is_not_asked_to_wait_for_the_end_of_the_turn(device: Device) -> None:
    with device.connect() as client:
        client.ask(post("/repeats", b"ordinary, first!"))
        assert client.ask(post("/repeats", b"joined, or alone")).body == b"joined, or alone"


def test_pipelined_requests_that_are_joined_are_answered_in_order(device: Device) -> None:
    bodies = [b"joined, %03d" % number for number in range(50)]
    with device.connect() as client, device.connect():
        wait_until(lambda: len(device.connections) == 2)  # who is alone yet is not joined with anybody
        client.send(b"".join(post("/repeats", body) for body in bodies))
        answers = [client.answer() for _ in bodies]
    assert [answer.body for answer in answers[1:]] == [body.removeprefix(b"joined, ") for body in bodies[1:]]


def test_a_client_that_goes_away_while_its_request_is_joined_harms_nobody(device: Device) -> None:
    with device.connect() as staying:
        staying.ask(post("/repeats", b"ordinary, first!"))
        for _ in range(20):
            with device.connect() as leaving:
                leaving.ask(post("/repeats", b"ordinary, first!"))
                leaving.send(post("/repeats", b"joined, and gone") * 3)
            answer = staying.ask(post("/repeats", b"joined, still on"))
            assert answer.body.removeprefix(b"joined, ") == b"still on"  # it may be alone by now
