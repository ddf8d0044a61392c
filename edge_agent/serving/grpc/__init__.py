"""gRPC of the Open Inference Protocol v2; needs the extra ``grpc``."""
