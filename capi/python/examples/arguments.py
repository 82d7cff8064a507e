"""What the examples share: a node's options from the command line."""

import argparse


def parse(about):
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--listen", help="where control links are accepted, like 127.0.0.1:7101")
    parser.add_argument("--listen-fd", type=int, default=-1)
    parser.add_argument("--peer", action="append", default=[], metavar="ID=ADDRESS")
    parser.add_argument("--join", action="append", default=[], metavar="ADDRESS")
    it = parser.parse_args()
    peers = {int(peer): address for peer, address in (each.split("=", 1) for each in it.peer)}
    return dict(id=it.id, listen=it.listen, listen_fd=it.listen_fd, peers=peers, join=it.join)
