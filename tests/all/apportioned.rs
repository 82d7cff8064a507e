//! Queries of a chain at any member: every step in every order, in a small world.

use consort_tests::apportioned::{Bounds, Rule, explore};

/// Enough for each of the mistakes below, and some millions of states.
const BOUNDS: Bounds = Bounds { versions: 1, queries: 1 };

#[test]
fn model_queries_are_linearizable_at_every_member_of_a_chain() {
    let states = explore(Rule::Ours, BOUNDS).unwrap_or_else(|error| panic!("{error}"));
    println!("{states} states");
}

fn is_caught(rule: Rule) {
    let error = explore(rule, BOUNDS).unwrap_err();
    println!("{rule:?}: {error}");
    assert!(error.starts_with("not so: no query finds less"), "{rule:?}: {error}");
}

/// The error in the published protocol.
#[test]
fn model_catches_the_published_protocol() {
    is_caught(Rule::Published);
}

#[test]
fn model_catches_a_clean_member_that_answers_at_once() {
    is_caught(Rule::CleanAtOnce);
}

#[test]
fn model_catches_a_tail_that_is_believed_alone() {
    is_caught(Rule::TailAlone);
}

#[test]
fn model_catches_a_version_looked_up_too_early() {
    is_caught(Rule::EarlyFrontier);
}

#[test]
fn model_catches_an_answer_of_a_wedged_member() {
    is_caught(Rule::AnswersWhenWedged);
}

#[test]
fn model_catches_an_answer_from_the_view_before() {
    is_caught(Rule::CrossesViews);
}
