//! The built `consort` command, run as users run it. No test asserts a time; every process a test starts is ended by
//! its own process id, whatever happens.

#![allow(clippy::unwrap_used)]

mod process;
mod usage;
mod demo;
mod node;
mod views;
mod bench;
mod bench_disk;
mod kv;
mod kv_histories;
mod log;
mod crash;
mod full_disk;

#[path = "../../examples/exchange_day.rs"]
#[allow(unreachable_pub)]
mod exchange_day;

#[path = "../../../tests/src/linear.rs"]
#[allow(unreachable_pub)]
mod linear;

#[test]
fn the_shipped_file_is_what_its_program_makes() {
    let shipped = include_str!("../../data/exchange-day.log");
    assert!(exchange_day::day().unwrap() == shipped, "run the example `exchange_day` again, see there");
}
