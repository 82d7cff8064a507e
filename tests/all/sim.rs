//! The simulation of sessions under seeds. `CONSORT_SIM_SEEDS` says how many, `CONSORT_SIM_SEED` replays one.

use consort_dataplane::session::Mutant;
use consort_tests::world::{Trouble, run};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}; give a number")))
}

/// D1 to D11, V2 to V4: every seed's history holds.
#[test]
fn sim_histories_hold() {
    if let Some(seed) = number("CONSORT_SIM_SEED") {
        let trouble = run(seed, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        println!("seed {seed} holds: {trouble:?}");
        return;
    }
    let seeds = number("CONSORT_SIM_SEEDS").unwrap_or(1000);
    let mut all = Trouble::default();
    for seed in 0..seeds {
        match run(seed, None) {
            Ok(trouble) => all.add(trouble),
            Err(error) => panic!("seed {seed}: {error}\nreplay it with: cargo xtask sim --seed {seed}"),
        }
    }
    println!("{seeds} seeds hold: {all:?}");
    let Trouble { torn, full, crashed, paused, refused, lent, supplied, resent, reborn, delivered, .. } = all;
    let Trouble { points, points_asked_again, misled, passed_over, chained, lost, .. } = all;
    for (what, count) in [
        ("torn publishes", torn),
        ("full rings", full),
        ("crashes", crashed),
        ("pauses", paused),
        ("refusals", refused),
        ("loans", lent),
        ("supplies", supplied),
        ("messages sent again", resent),
        ("sessions in used memory", reborn),
        ("deliveries", delivered),
        ("read points", points),
        ("read points asked for again in the next view", points_asked_again),
        ("read points of members that were left out", misled),
        ("messages passed over", passed_over),
        ("chains", chained),
        ("members fenced in a running session", lost),
    ] {
        assert!(count > 0 || seeds < 100, "{what} never happened in {seeds} seeds");
    }
}

fn is_caught(mutant: Mutant) {
    for seed in 0..3000 {
        if let Err(error) = run(seed, Some(mutant)) {
            println!("{mutant:?} caught by seed {seed}: {error}");
            return;
        }
    }
    panic!("{mutant:?} went unnoticed in 3,000 seeds");
}

#[test]
fn sim_catches_a_head_before_its_bytes() {
    is_caught(Mutant::HeadFirst); // D2
}

#[test]
fn sim_catches_promises_that_silence_does_not_raise() {
    is_caught(Mutant::SilentPromise); // D5
}

#[test]
fn sim_catches_ties_that_ranks_do_not_break() {
    is_caught(Mutant::NoTieBreak); // D6
}

#[test]
fn sim_catches_delivery_before_stability() {
    is_caught(Mutant::NotStable); // D7
}

#[test]
fn sim_catches_more_delivered_than_others_say() {
    is_caught(Mutant::ToldTooMuch); // D7
}

#[test]
fn sim_catches_room_released_too_early() {
    is_caught(Mutant::EarlyRelease); // D11
}

#[test]
fn sim_catches_words_of_an_earlier_session() {
    is_caught(Mutant::IgnoreTags); // V10
}

#[test]
fn sim_catches_a_wedged_member_that_answers() {
    is_caught(Mutant::AnswersWhenWedged); // V2
}

#[test]
fn sim_catches_a_read_point_that_not_all_have_confirmed() {
    is_caught(Mutant::UnconfirmedPoint);
}

#[test]
fn sim_catches_a_read_point_before_its_frontier_is_delivered() {
    is_caught(Mutant::UndeliveredPoint);
}

#[test]
fn sim_catches_payloads_that_never_went_out() {
    is_caught(Mutant::PayloadToNone); // D12
}

#[test]
fn sim_catches_messages_without_a_place() {
    is_caught(Mutant::NoPlace); // D12
}

#[test]
fn sim_catches_a_promise_ahead_of_what_a_chain_carries() {
    is_caught(Mutant::PromiseAhead); // D6
}

#[test]
fn sim_catches_a_head_that_vouches_for_what_a_chain_carries() {
    is_caught(Mutant::HeadVouches); // D2
}

#[test]
fn sim_catches_an_acknowledgement_before_what_it_passes_on() {
    is_caught(Mutant::AcknowledgedFirst); // F6
}

#[test]
fn sim_catches_relayed_bytes_that_count_though_their_origin_is_fenced() {
    is_caught(Mutant::LostCounts); // F4
}
