//! Groups of processes that are killed, stopped, cut off, that join and leave, all under load; and what each of them told of
//! its life is held against what all others told ([`consort_tests::record`]).
//!
//! Each scenario says which weakness of systems of this kind it shows absent here. Nothing is timed: a scenario waits until the
//! histories tell what must happen, and fails if it never does.

mod crew;
mod member;
mod network;
mod campaign;
mod objects;

use std::io::Write as _;
use std::time::Duration;

use consort::Question;
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

/// Elsewhere a callback that takes its time keeps heartbeats from being answered, and a member that is well is thrown out. Here
/// the engine stands still for longer than the bound on silence, everyone waits for it and can say so, and no view changes.
fn a_slow_callback_is_named_and_waited_for(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, SHORT, false);
    crew.also(3, "driven");
    crew.found(3);
    let view = crew.all_see(&[1, 2, 3]);
    crew.node(3).say("hang");
    crew.wait("node 1 says for how long node 3's engine has stood still", |crew| {
        let status = crew.ask(1, Question::Status);
        let members = status["view"]["members"].as_array().unwrap();
        let still = members.iter().find(|member| member["node"] == 3).unwrap()["engine_still_ms"].as_u64();
        assert!(members.iter().all(|member| member["suspected"] == false), "{status}");
        still.is_some_and(|still| u128::from(still) > 2 * SHORT.as_millis())
    });
    let explained = crew.ask(1, Question::Explain);
    let reasons = explained["reasons"].as_array().unwrap();
    let named = |it: &serde_json::Value| {
        it["clause"] == "V9"
            && it["what"].as_str().is_some_and(|what| what.contains("node 3 has stood still"))
    };
    assert!(reasons.iter().any(named), "{explained}");
    crew.node(3).say("go on");
    crew.goes_on(&[1, 2, 3]);
    crew.settle(&[1, 2, 3]);
    assert_eq!(crew.all_see(&[1, 2, 3]), view);
}

#[test]
fn a_slow_callback_is_named_and_waited_for_over_shared_memory() {
    a_slow_callback_is_named_and_waited_for("shm");
}

#[test]
fn a_slow_callback_is_named_and_waited_for_over_tcp() {
    a_slow_callback_is_named_and_waited_for("tcp");
}

/// Elsewhere one member that is slow for ever makes all slow for ever. Here a group can be told to go on without it after a while;
/// it is told so when it looks up, and delivered nothing that the others did not.
fn a_callback_that_never_returns_is_an_eviction(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, SHORT, false);
    for (node, words) in [(1, "slow=3000"), (2, "slow=3000"), (3, "slow=3000 driven")] {
        crew.also(node, words);
    }
    crew.found(3);
    crew.node(3).say("hang");
    crew.all_see(&[1, 2]);
    crew.goes_on(&[1, 2]);
    // Whoever saw it first says why.
    let why = [1, 2].map(|node| crew.ask(node, Question::Status)["lost"].to_string());
    assert!(why.iter().any(|lost| lost.contains("its engine has stood still")), "{why:?}");
    crew.node(3).say("go on");
    crew.wait("it is told", |crew| crew.node(3).told.stopped.is_some());
    let stopped = crew.node(3).told.stopped.clone().unwrap();
    assert!(stopped.starts_with("Evicted"), "{stopped}");
    crew.settle(&[1, 2]);
}

#[test]
fn a_callback_that_never_returns_is_an_eviction_over_shared_memory() {
    a_callback_that_never_returns_is_an_eviction("shm");
}

#[test]
fn a_callback_that_never_returns_is_an_eviction_over_tcp() {
    a_callback_that_never_returns_is_an_eviction("tcp");
}

/// Elsewhere a group's loss stops everyone: one view for all, and all streams stand still while it changes. Here a member of
/// one group is killed, the other group has one session throughout, and both lose nothing.
fn a_loss_spares_the_groups_that_it_does_not_concern(fabric: &'static str) {
    let mut crew = Crew::new(5, fabric, NEVER, false);
    (1..=5).for_each(|node| crew.also(node, "group=left:1,2,3 group=right:3,4,5"));
    crew.found(5);
    let left = ("left", [1, 2, 3], &[1, 2, 3][..], &[1][..]);
    let right = ("right", [3, 4, 5], &[3, 4][..], &[1, 2][..]);
    for (group, all, ..) in [left, right] {
        crew.group_goes_on(group, &all);
    }
    crew.kill(&[5]);
    crew.all_see(&[1, 2, 3, 4]);
    for (group, _, survivors, _) in [left, right] {
        crew.group_goes_on(group, survivors);
    }
    for (group, all, survivors, views) in [left, right] {
        let records = crew.settle_group(group, survivors);
        assert_eq!(
            records.stays.iter().map(|stay| stay.me.0).collect::<Vec<_>>(),
            all,
            "{group}: nobody else"
        );
        for stay in records.stays.iter().filter(|stay| survivors.contains(&stay.me.0)) {
            let sessions: Vec<_> = stay.chapters.iter().map(|chapter| chapter.view).collect();
            assert_eq!(sessions, views, "{group}: the sessions of {:?}", stay.me);
        }
    }
    crew.settle(&[1, 2, 3, 4]);
}

#[test]
fn a_loss_spares_the_groups_that_it_does_not_concern_over_shared_memory() {
    a_loss_spares_the_groups_that_it_does_not_concern("shm");
}

#[test]
fn a_loss_spares_the_groups_that_it_does_not_concern_over_tcp() {
    a_loss_spares_the_groups_that_it_does_not_concern("tcp");
}

/// Elsewhere two can't survive the loss of one, and a third costs as much as the two. Here the third only votes.
fn a_witness_keeps_two_alive(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, NEVER, false);
    crew.also(3, "witness");
    (1..=3).for_each(|node| crew.start(node, 3));
    crew.all_see(&[1, 2, 3]);
    crew.goes_on(&[1, 2]);
    crew.kill(&[1]);
    crew.all_see(&[2, 3]);
    crew.goes_on(&[2]);
    crew.join(1, &[2]);
    crew.all_see(&[1, 2, 3]);
    crew.goes_on(&[1, 2]);
    crew.settle(&[1, 2]);
    assert_eq!(crew.node(3).told.sent.count, 0, "a witness sends nothing");
}

#[test]
fn a_witness_keeps_two_alive_over_shared_memory() {
    a_witness_keeps_two_alive("shm");
}

#[test]
fn a_witness_keeps_two_alive_over_tcp() {
    a_witness_keeps_two_alive("tcp");
}

/// Elsewhere the last one that is left goes on alone, for all it knows the others are dead. Here it can't know, stops, and
/// delivers nothing more.
fn the_last_of_three_stops(fabric: &'static str) {
    let mut crew = Crew::new(3, fabric, SHORT, false);
    crew.found(3);
    crew.kill(&[1, 2]);
    crew.wait("it stops", |crew| crew.node(3).told.stopped.is_some());
    let told = &crew.node(3).told;
    assert!(told.stopped.as_deref().unwrap().starts_with("NoQuorum"), "{:?}", told.stopped);
    let alone = told.stays.iter().flat_map(|stay| &stay.chapters).any(|it| it.members.len() < 2);
    assert!(!alone, "a view of one");
    crew.settle(&[]);
}

#[test]
fn the_last_of_three_stops_over_shared_memory() {
    the_last_of_three_stops("shm");
}

#[test]
fn the_last_of_three_stops_over_tcp() {
    the_last_of_three_stops("tcp");
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
    let mut crew = Crew::at(network.places(), "tcp", SHORT, true);
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
    let mut crew = Crew::at(network.places(), "tcp", SHORT, true);
    crew.found(3);
    network.part(&[1], &[2, 3]);
    crew.all_see(&[2, 3]);
    crew.wait("the minority says that it is out", |crew| crew.node(1).told.evictions == ["NoQuorum"]);
}

/// Without being set to join again, who is cut off stops, and stays stopped when it hears the others again: nothing that they
/// delivered meanwhile, or deliver from now on, is delivered there as if it had been in the group all the time.
#[test]
fn a_minority_that_does_not_join_again_delivers_nothing_more() {
    let Some(network) = network(3) else { return };
    let mut crew = Crew::at(network.places(), "tcp", SHORT, false);
    crew.found(3);
    network.part(&[1], &[2, 3]);
    crew.all_see(&[2, 3]);
    crew.wait("the minority stops", |crew| crew.node(1).told.stopped.is_some());
    let stopped = crew.node(1).told.stopped.clone().unwrap();
    assert!(stopped.starts_with("NoQuorum"), "{stopped}");
    let stays = crew.node(1).told.stays.clone();
    network.heal();
    crew.goes_on(&[2, 3]);
    crew.settle(&[2, 3]);
    assert_eq!(crew.node(1).told.stays, stays, "it delivered something");
}

/// Elsewhere a wire that fails between two, in one direction, while both hear the third, makes each denounce the other, and members are
/// thrown out by turns for as long as it lasts. Here one of the two is out, the other and the third go on, and that is that.
#[test]
fn one_of_three_does_not_hear_one_other() {
    let Some(network) = network(3) else { return };
    let mut crew = Crew::at(network.places(), "tcp", SHORT, true);
    crew.found(3);
    network.deafen(1, &[2]);
    let mut pair = Vec::new();
    crew.wait("a view of node 3 and one of the two", |crew| {
        pair = [vec![1, 3], vec![2, 3]].into_iter().find(|pair| crew.agree(pair)).unwrap_or_default();
        !pair.is_empty()
    });
    crew.goes_on(&pair);
    network.heal();
    crew.all_see(&[1, 2, 3]);
    crew.goes_on(&[1, 2, 3]);
    let records = crew.settle(&[1, 2, 3]);
    let alone = records.stays.iter().flat_map(|stay| &stay.chapters).any(|it| it.members.len() < 2);
    assert!(!alone, "a view of one");
}

/// Elsewhere a group over several hosts is over one fabric, or a bridge between two of them is one more thing that fails. Here each link takes
/// the best that its ends have: a host's members share memory, hosts talk over TCP. A member dies, a host is cut off with what it
/// has, and comes again; and all that was delivered anywhere agrees.
#[test]
fn two_hosts_whose_members_share_memory() {
    const HOSTS: [u8; 5] = [1, 1, 2, 2, 2];
    let Some(network) = network(2) else { return };
    let mut crew = Crew::at(network.places_on(&HOSTS), "auto", SHORT, true);
    crew.found(5);
    for node in 1..=5u32 {
        let mine = HOSTS[node as usize - 1];
        let status = network.inside(mine, || crew.ask(node, Question::Status));
        let over = status["view"]["members"].as_array().unwrap().iter().map(|it| it["fabric"].as_str());
        let of = |host: &u8| if *host == mine { "shm" } else { "tcp" };
        let expected = (1..).zip(HOSTS.iter().map(of)).map(|(peer, name)| (peer != node).then_some(name));
        assert!(over.eq(expected), "node {node}: {status}");
    }
    crew.kill(&[4]);
    crew.all_see(&[1, 2, 3, 5]);
    crew.goes_on(&[1, 2, 3, 5]);
    crew.join(4, &[1]);
    crew.all_see(&[1, 2, 3, 4, 5]);
    crew.goes_on(&[1, 2, 3, 4, 5]);
    network.part(&[1], &[2]);
    crew.all_see(&[3, 4, 5]);
    crew.goes_on(&[3, 4, 5]);
    network.heal();
    crew.wait("the minority says that it is out", |crew| {
        [1, 2].iter().all(|node| !crew.node(*node).told.evictions.is_empty())
    });
    crew.all_see(&[1, 2, 3, 4, 5]);
    crew.goes_on(&[1, 2, 3, 4, 5]);
    let records = crew.settle(&[1, 2, 3, 4, 5]);
    let split = records.stays.iter().flat_map(|stay| &stay.chapters);
    assert!(split.into_iter().all(|it| it.members.len() >= 3), "a view of a minority");
}
