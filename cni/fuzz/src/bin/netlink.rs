//! The engine's door to `cni_fuzz::netlink`.
#![no_main]
#![allow(unsafe_code, reason = "the macro exports the symbol that the engine calls")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cni_fuzz::netlink(data));
