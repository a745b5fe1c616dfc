"""A gRPC service that notes what it is called with, and its client. Without protocol buffers: octets go as they are.

    grpc_notes.py serve PORT FILE
    grpc_notes.py burst SERVER CHANNELS CALLS    each channel makes its calls at once, and closes when all are answered
    grpc_notes.py chain SERVER CHANNELS          each channel makes one call after the other until SIGTERM
"""

import os
import signal
import sys
import threading
from concurrent import futures

import grpc

METHOD = "/lab.Notes/Note"


def serve(port, file):
    notes = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(words, _context):
        os.write(notes, words + b"\n")
        return words * 3

    class Notes(grpc.GenericRpcHandler):
        def service(self, call):
            return grpc.unary_unary_rpc_method_handler(note) if call.method == METHOD else None

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Notes()])
    assert server.add_insecure_port(f"0.0.0.0:{port}") == int(port)
    server.start()
    server.wait_for_termination()


def connect(server):
    # Otherwise channels to one server share a connection, and a proxy of the environment is used.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channel = grpc.insecure_channel(server, options)
    return channel, channel.unary_unary(METHOD)


def burst(server, channels, calls):
    for number in range(int(channels)):
        channel, note = connect(server)
        under_way = [note.future(f"burst {number} {call}".encode()) for call in range(int(calls))]
        for answer in under_way:
            answer.result(timeout=60)
        channel.close()


def chain(server, channels):
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    connected = [connect(server) for _ in range(int(channels))]
    rounds = 0
    while not stopped.wait(0.02):
        for number, (_, note) in enumerate(connected):
            note(f"chain {number} {rounds}".encode(), timeout=60)
        rounds += 1
        print(rounds, flush=True)
    for channel, _ in connected:
        channel.close()


{"serve": serve, "burst": burst, "chain": chain}[sys.argv[1]](*sys.argv[2:])
