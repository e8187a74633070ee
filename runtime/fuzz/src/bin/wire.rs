//! The engine's door to `runtime_fuzz::wire`.
#![no_main]
#![allow(unsafe_code, reason = "the macro exports the symbol that the engine calls")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| runtime_fuzz::wire(data));
