//! The CRI v1 protobuf interface, generated.
