# SPDX-License-Identifier: Apache-2.0
"""A directory over https, as a process of its own: `python web_server.py DIRECTORY PORT CERTIFICATE KEY`."""

import ssl
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


def main(directory: str, port: str, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(
        ("127.0.0.1", int(port)), partial(SimpleHTTPRequestHandler, directory=directory)
    ) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
