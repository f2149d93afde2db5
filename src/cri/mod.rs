//! The CRI: gRPC in, plain specs on. Nothing outside this folder knows protobuf.
