"""The server of the page, for this machine alone."""

import errno
import threading
import webbrowser
from typing import Any

import panel as pn

from tradeoff.explorer.answers import answer
from tradeoff.explorer.page import Explorer
from tradeoff.explorer.view import View

HOST = "127.0.0.1"


def serve(port: int, browser: bool) -> None:
    """Serve the explorer on the loopback address until it is interrupted.

    Args:
        port: of the address, 1 to 65535.
        browser: whether to open the address in a browser.

    Raises:
        ValueError: when the port is none, is taken, or needs rights that are missing.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"--port is {port}; give a port from 1 to 65535.")
    origins = [f"{host}:{port}" for host in (HOST, "localhost")]
    try:
        server: Any = pn.serve(
            lambda: Explorer().page(),
            port=port,
            address=HOST,
            websocket_origin=origins,
            show=False,
            start=False,
            verbose=False,
            title="tradeoff explorer",
        )
    except OSError as error:
        raise ValueError(_refused(port, error)) from error
    print("Computing the first view ...", flush=True)
    answer(View())
    address = f"http://{HOST}:{port}/"
    print(f"The explorer is at {address} (stop it with Ctrl+C).", flush=True)
    if browser:
        threading.Thread(target=open_browser, args=(address, port), daemon=True).start()
    server.run_until_shutdown()


def _refused(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is taken, perhaps by an explorer that is running: open http://{HOST}:{port}/ to see, "
            f"or give another port, as in: tradeoff explore --port {port % 65535 + 1}"
        )
    return f"port {port} cannot be used ({error.strerror}); give another port, from 1024 to 65535."


def open_browser(address: str, port: int) -> None:
    """Open the address in a browser, or say how to where there is none; the page is served either way."""
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        print(
            "No browser was found here. Open the address in one; from another machine, first run there: "
            f"ssh -L {port}:{HOST}:{port} THIS-MACHINE",
            flush=True,
        )
