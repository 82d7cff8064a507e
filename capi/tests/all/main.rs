//! One binary of integration tests: C programs, built by the machine's compilers against the header, and run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that can't go on should say where")]

mod kit;
mod header;
mod abi;
mod examples;
mod resp;
mod misuse;
mod install;
mod python;
