"""``dvisor sockets``: who talks to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened

if TYPE_CHECKING:
    from dvisor.guest.sock import Socket

Tcp = Annotated[bool, typer.Option("--tcp", help="TCP, of IPv4 and IPv6.")]
Udp = Annotated[bool, typer.Option("--udp", help="UDP and UDP-Lite.")]
Unix = Annotated[bool, typer.Option("--unix", help="Unix domain sockets.")]
Listening = Annotated[bool, typer.Option("--listening", help="Only what waits for others.")]


def register(app: typer.Typer) -> None:
    @app.command("sockets")
    def sockets_(
        target: Target = None,
        tcp: Tcp = False,
        udp: Udp = False,
        unix: Unix = False,
        listening: Listening = False,
        json: Json = False,
        stopped: Stopped = False,
    ) -> None:
        """List sockets of all network namespaces, and the processes that hold them open.

        Example: dvisor sockets web1 --tcp --listening
        """
        chosen = (("tcp", tcp), ("udp", udp), ("udplite", udp), ("unix", unix))
        kinds = {kind for kind, wanted in chosen if wanted}
        with opened(target, stopped) as vm:
            found = vm.guest.sockets()
            found[:] = [
                socket
                for socket in found
                if (not kinds or (socket.protocol in kinds and socket.type != "raw"))
                and (not listening or waits(socket))
            ]
            columns: list[output.Column[Socket]] = [
                ("PROTO", protocol),
                ("STATE", lambda s: s.state),
                (">RX", lambda s: s.rx_queue),
                (">TX", lambda s: s.tx_queue),
                ("LOCAL", lambda s: end(s.family, s.local, s.local_port)),
                ("REMOTE", remote),
                (">UID", lambda s: s.uid if s.uid >= 0 else None),
                (">INODE", lambda s: s.inode or None),
                (">NETNS", lambda s: s.netns),
                ("OWNERS", owners),
            ]
            output.emit(vm.name, "sockets", found, columns, json)


def waits(socket: Socket) -> bool:
    """A listener, or a bound datagram or raw socket that is not connected (as ``ss -l``)."""
    if socket.state == "LISTEN":
        return True
    return socket.state == "CLOSE" and socket.listed and socket.type in {"dgram", "raw"}


def protocol(socket: Socket) -> str:
    """``tcp6``, ``raw:icmp``, ``unix:dgram``, ``netlink:route``."""
    if socket.family == "unix":
        return f"unix:{socket.type}"
    if socket.family not in {"inet", "inet6"}:
        return f"{socket.family}:{socket.protocol}"
    kind = f"raw:{socket.protocol}" if socket.type == "raw" else socket.protocol
    return kind + "6" * (socket.family == "inet6" and not kind.endswith("v6"))


def remote(socket: Socket) -> str:
    if socket.family == "unix":
        return f"inode {socket.peer_inode}" if socket.peer_inode else "-"
    return end(socket.family, socket.remote, socket.remote_port)


def end(family: str, address: str, port: int) -> str:
    """``10.0.0.1:80``, ``[::1]:80``, a path, a netlink port id; ``-`` for none."""
    if not port:
        return "-" if address in {"", "0.0.0.0", "::"} else address  # noqa: S104
    host = f"[{address}]" if family == "inet6" else address
    return f"{host}:{port}" if host else str(port)


def owners(socket: Socket) -> str:
    """``nginx(12, fd 3)``, at most three of them."""
    shown = [f"{owner.comm}({owner.pid}, fd {owner.fd})" for owner in socket.owners[:3]]
    more = len(socket.owners) - len(shown)
    return " ".join(shown) + (f" and {more} more" if more else "") or "-"
