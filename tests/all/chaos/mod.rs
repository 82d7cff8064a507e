//! Groups of processes that are killed, stopped, cut off, that join and leave, all under load; and what each of them told of
//! its life is held against what all others told ([`consort_tests::record`]).
//!
//! Each scenario says which weakness of systems of this kind it shows absent here. Nothing is timed: a scenario waits until the
//! histories tell what must happen, and fails if it never does.

mod crew;
mod member;
mod network;

use std::io::Write as _;
use std::time::Duration;

use rustix::process::Signal;

use self::crew::{Crew, NEVER};
use self::network::Network;

/// Short, and above what a busy machine does to a process.
const SHORT: Duration = Duration::from_secs(1);

/// Messages of one sender that make some load.
const SOME: u64 = 60;

/// Elsewhere a crash is noticed when a timer runs out, so that timer is a compromise between false alarms and a group that
/// stands still. Here the end of a process is proof: with a bound on silence that never runs out the view changes all the same.
fn a_killed_member_is_noticed_by_proof(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, NEVER, false);
    crew.found(3);
    crew.kill(&[3]);
    crew.all_see(&[1, 2]);
    crew.goes_on(&[1, 2]);
    // Started again it is another incarnation, and no message of the old one is taken for its own.
    crew.start(3, 3);
    crew.all_see(&[1, 2, 3]);
    crew.goes_on(&[1, 2, 3]);
    crew.settle(&[1, 2, 3]);
}

#[test]
fn a_killed_member_is_noticed_by_proof_over_shared_memory() {
    a_killed_member_is_noticed_by_proof("shm");
}

#[test]
fn a_killed_member_is_noticed_by_proof_over_tcp() {
    a_killed_member_is_noticed_by_proof("tcp");
}

/// Elsewhere a view change hangs on its leader, and starts anew or for ever stands still when that and whoever takes over
/// are lost in the midst of it. Here the lowest node and the next are killed together.
fn the_leader_and_its_successor_are_killed(fabric: &'static str) {
    let mut crew = Crew::new(5, fabric, NEVER, false);
    crew.found(5);
    crew.kill(&[1, 2]);
    crew.all_see(&[3, 4, 5]);
    crew.goes_on(&[3, 4, 5]);
    crew.settle(&[3, 4, 5]);
}

#[test]
fn the_leader_and_its_successor_are_killed_over_shared_memory() {
    the_leader_and_its_successor_are_killed("shm");
}

#[test]
fn the_leader_and_its_successor_are_killed_over_tcp() {
    the_leader_and_its_successor_are_killed("tcp");
}

/// Elsewhere a member that slept comes back, finds that it heard nobody for long, and suspects them. Here it has slept for less
/// than the bound, so nothing happens but that the others waited: no view changes.
fn a_short_pause_changes_nothing(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, NEVER, false);
    crew.found(3);
    let view = crew.all_see(&[1, 2, 3]);
    crew.node(3).signal(Signal::STOP);
    crew.sends(1, SOME);
    crew.node(3).signal(Signal::CONT);
    crew.goes_on(&[1, 2, 3]);
    crew.settle(&[1, 2, 3]);
    assert_eq!(crew.all_see(&[1, 2, 3]), view);
}

#[test]
fn a_short_pause_changes_nothing_over_shared_memory() {
    a_short_pause_changes_nothing("shm");
}

#[test]
fn a_short_pause_changes_nothing_over_tcp() {
    a_short_pause_changes_nothing("tcp");
}

/// Elsewhere a member that slept for too long goes on alone: everyone else seems dead, and it delivers what nobody else does.
/// Here it finds that it was left out, delivers nothing that the others did not, and comes back as another incarnation.
fn a_long_pause_is_an_eviction(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, SHORT, true);
    crew.found(3);
    // The lowest: the one that would propose.
    crew.node(1).signal(Signal::STOP);
    crew.all_see(&[2, 3]);
    crew.goes_on(&[2, 3]);
    crew.node(1).signal(Signal::CONT);
    crew.wait("it is told", |crew| !crew.node(1).told.evictions.is_empty());
    crew.all_see(&[1, 2, 3]);
    crew.goes_on(&[1, 2, 3]);
    let records = crew.settle(&[1, 2, 3]);
    let alone = records.stays.iter().flat_map(|stay| &stay.chapters).any(|it| it.members.len() < 2);
    assert!(!alone, "a view of one");
}

#[test]
fn a_long_pause_is_an_eviction_over_shared_memory() {
    a_long_pause_is_an_eviction("shm");
}

#[test]
fn a_long_pause_is_an_eviction_over_tcp() {
    a_long_pause_is_an_eviction("tcp");
}

/// Elsewhere members are added and removed while the group stands still, or a joiner sees the middle of a view. Here a joiner
/// sees views whole from its first one on, and one that leaves has all its messages delivered; all the while everyone sends.
fn members_join_and_leave_under_load(fabric: &'static str) {
    let mut crew = Crew::new(4, fabric, NEVER, false);
    crew.found(3);
    crew.join(4, &[2, 1]);
    crew.all_see(&[1, 2, 3, 4]);
    crew.goes_on(&[1, 2, 3, 4]);
    crew.node(2).say("leave");
    crew.all_see(&[1, 3, 4]);
    crew.goes_on(&[1, 3, 4]);
    crew.wait("it has left in order", |crew| crew.node(2).told.closed);
    let records = crew.settle(&[1, 3, 4]);
    // All of them, by what those have who stay.
    let stays = records.stays.iter().find(|stay| stay.me.0 == 1).unwrap();
    let heard = stays.chapters.iter().flat_map(|chapter| &chapter.messages);
    let heard = heard.filter(|(_, message)| message.process == 1).count() as u64;
    assert_eq!(heard, records.sent[&1].count, "messages of the one that left");
}

#[test]
fn members_join_and_leave_under_load_over_shared_memory() {
    members_join_and_leave_under_load("shm");
}

#[test]
fn members_join_and_leave_under_load_over_tcp() {
    members_join_and_leave_under_load("tcp");
}

/// A network of so many nodes; where none can be made, that is said where it is seen (a test's own output is not, when it
/// passes).
fn network(size: u8) -> Option<Network> {
    match Network::new(size) {
        Ok(network) => Some(network),
        Err(why) => {
            let word =
                format!("partitions are not tested: {why}; they need root, unshare, nsenter, ip and nft\n");
            let _ = std::io::stderr().write_all(word.as_bytes());
            None
        }
    }
}

/// Cuts a group of `size` in two, has the majority go on, and puts it together again: the minority says that it was out. (That
/// it says so while it is cut off is a test of its own below.)
fn parted(size: u8, minority: &[u32], cut: impl Fn(&Network), heal: impl Fn(&Network)) {
    let Some(network) = network(size) else { return };
    let mut crew = Crew::at(network.places(), SHORT, true);
    crew.found(size.into());
    let all: Vec<u32> = (1..=size.into()).collect();
    let majority: Vec<u32> = all.iter().copied().filter(|node| !minority.contains(node)).collect();
    cut(&network);
    crew.all_see(&majority);
    crew.goes_on(&majority);
    heal(&network);
    crew.wait("the minority says that it is out", |crew| {
        minority.iter().all(|node| !crew.node(*node).told.evictions.is_empty())
    });
    for node in minority {
        let why = &crew.node(*node).told.evictions;
        assert!(why.iter().all(|why| why == "NoQuorum" || why == "Evicted"), "node {node}: {why:?}");
    }
    crew.all_see(&all);
    crew.goes_on(&all);
    let records = crew.settle(&all);
    // Whoever is in a view of a minority only has gone on alone.
    let split = records.stays.iter().flat_map(|stay| &stay.chapters);
    assert!(split.into_iter().all(|it| it.members.len() >= majority.len()), "a view of a minority");
}

/// Elsewhere both sides of a partition go on, and what they delivered meanwhile can't be put together again ("split brain"),
/// or the side with the old leader goes on until it notices. Here two of three go on, and the lowest node alone does not.
#[test]
fn one_of_three_is_cut_off() {
    parted(3, &[1], |network| network.part(&[1], &[2, 3]), Network::heal);
}

/// The same where the wire is gone rather than silent.
#[test]
fn the_plug_of_one_of_three_is_pulled() {
    parted(3, &[3], |network| network.plug(3, "down"), |network| network.plug(3, "up"));
}

/// And where the minority is two, who hear each other and could think themselves a group.
#[test]
fn two_of_five_are_cut_off() {
    parted(5, &[1, 2], |network| network.part(&[1, 2], &[3, 4, 5]), Network::heal);
}

/// Elsewhere a node that is heard and hears nothing holds up the group, suspects all others, or is taken in and thrown
/// out by turns. Here the two that hear each other go on without it.
#[test]
fn one_of_three_hears_nothing_and_is_heard() {
    parted(3, &[3], |network| network.deafen(3, &[1, 2]), Network::heal);
}

/// Who can't reach a majority says so in the time that is set, also where nothing breaks and all is silence.
#[test]
fn a_minority_says_so_while_it_is_cut_off() {
    let Some(network) = network(3) else { return };
    let mut crew = Crew::at(network.places(), SHORT, true);
    crew.found(3);
    network.part(&[1], &[2, 3]);
    crew.all_see(&[2, 3]);
    crew.wait("the minority says that it is out", |crew| crew.node(1).told.evictions == ["NoQuorum"]);
}
