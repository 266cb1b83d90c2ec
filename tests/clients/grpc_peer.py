"""gRPC without TLS: grpc_peer.py serve ADDRESS…, or grpc_peer.py call TARGET. Messages are plain bytes, so that
no code has to be generated."""

import concurrent.futures
import sys

import grpc

METHOD = "/outgate.Echo/Say"


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
        return None


def serve(addresses):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Echo(),))
    for address in addresses:
        assert server.add_insecure_port(address)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def call(target):
    with grpc.insecure_channel(target) as channel:
        try:
            print(channel.unary_unary(METHOD)(b"hello", timeout=20).decode(), "came back")
        except grpc.RpcError as error:
            print("failed:", error.code(), error.details())


serve(sys.argv[2:]) if sys.argv[1] == "serve" else call(sys.argv[2])
