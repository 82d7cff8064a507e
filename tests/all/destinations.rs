//! Messages for some of a group's members (D12), between real nodes: who gets what, what it costs the others, what becomes of them
//! when those whom they are for are gone.

use std::net::TcpListener;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use consort::{Event, FabricChoice, Guarantee, Node, NodeBuilder, NodeId, OutcomeError, SendError};

/// A node's deliveries, as (sender, place, payload), until as many members have ended or it is alone.
type Log = Vec<(u32, u64, Vec<u8>)>;

fn found(fabric: FabricChoice, members: u32, guarantee: Guarantee) -> Vec<Node> {
    let listeners: Vec<_> = (0..members).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
    let start = |(id, listener): (u32, TcpListener)| {
        let peers = (1..).zip(&addresses).filter(|(peer, _)| *peer != id);
        let builder = NodeBuilder::new(id).listener(listener).fabric(fabric).guarantee(guarantee);
        let builder = peers.fold(builder, |builder, (peer, at)| builder.peer(peer, *at));
        builder.start_within(Duration::from_secs(60)).start().unwrap()
    };
    let nodes: Vec<Node> = (1..).zip(listeners).map(start).collect();
    for node in &nodes {
        while !matches!(node.recv().unwrap(), Event::View(_)) {}
    }
    nodes
}

/// Takes what comes until all members have ended their sends.
fn take(node: Node, members: usize) -> JoinHandle<(Node, Log)> {
    thread::spawn(move || {
        let (mut log, mut ended) = (Log::new(), 0);
        while ended < members {
            match node.recv().unwrap() {
                Event::Message(message) => log.push((message.sender.0, message.seq.0, message.to_vec())),
                Event::Ended { .. } => ended += 1,
                _ => {}
            }
        }
        (node, log)
    })
}

// D12: lists that overlap, from all members at once: each gets what is for it, in one order, with the others' places left out.
#[test]
fn messages_for_some_members_keep_one_order() {
    for fabric in [FabricChoice::Shm, FabricChoice::Tcp] {
        let nodes = found(fabric, 3, Guarantee::Atomic);
        let senders: Vec<_> = nodes.iter().map(Node::sender).collect();
        let takers: Vec<_> = nodes.into_iter().map(|node| take(node, 3)).collect();
        // By number: to whom, a bit for each member; 7 is sent to all, without a list.
        let lists = |number: u32| [0b011, 0b110, 0b101, 0b111, 0b001, 0b100, 0b010][number as usize % 7];
        let send = |sender: consort::Sender, id: u32| {
            thread::spawn(move || {
                for number in 0..500 {
                    let text = format!("{id} {number}");
                    let to: Vec<_> =
                        (0..3).filter(|at| lists(number) >> at & 1 == 1).map(|at| NodeId(at + 1)).collect();
                    if to.len() == 3 {
                        sender.send(text.as_bytes()).unwrap();
                    } else {
                        sender.send_to(&to, text.as_bytes()).unwrap();
                    }
                }
                sender.end().unwrap();
            })
        };
        let sending: Vec<_> = senders.into_iter().zip(1..).map(|(sender, id)| send(sender, id)).collect();
        sending.into_iter().for_each(|thread| thread.join().unwrap());
        let (_nodes, logs): (Vec<Node>, Vec<Log>) =
            takers.into_iter().map(|taker| taker.join().unwrap()).unzip();
        let mut all: Vec<Option<(u32, Vec<u8>)>> = vec![None; 1500];
        for (log, at) in logs.iter().zip(0u32..) {
            assert!(log.is_sorted_by(|a, b| a.1 < b.1), "{fabric:?}: places grow");
            for (sender, place, text) in log {
                let entry = &mut all[usize::try_from(*place).unwrap()];
                let known = entry.get_or_insert_with(|| (*sender, text.clone()));
                assert_eq!(*known, (*sender, text.clone()), "{fabric:?}: one message in each place");
                let number: u32 =
                    std::str::from_utf8(text).unwrap().split_once(' ').unwrap().1.parse().unwrap();
                assert_eq!(lists(number) >> at & 1, 1, "{fabric:?}: {number} came to member {}", at + 1);
            }
            for sender in 1..=3 {
                let due = (0..500)
                    .filter(|number| lists(*number) >> at & 1 == 1)
                    .map(|it| format!("{sender} {it}"));
                let came = log
                    .iter()
                    .filter(|(from, ..)| *from == sender)
                    .map(|it| String::from_utf8(it.2.clone()).unwrap());
                assert!(
                    came.eq(due),
                    "{fabric:?}: all that is for member {} of {sender}, in its order",
                    at + 1
                );
            }
        }
        assert!(all.iter().all(Option::is_some), "{fabric:?}: every place is some message's");
    }
}

// D12: whom a message isn't for is not sent its bytes.
#[test]
fn who_is_not_addressed_gets_no_bytes() {
    const SIZE: usize = 32 << 10;
    let nodes = found(FabricChoice::Tcp, 3, Guarantee::Atomic);
    let sender = nodes[0].sender();
    let before: Vec<u64> = nodes.iter().map(|node| node.stats().counts.bytes_in).collect();
    let takers: Vec<_> = nodes.into_iter().map(|node| take(node, 1)).collect();
    for _ in 0..200 {
        sender.send_to(&[NodeId(2)], &[7; SIZE]).unwrap();
    }
    sender.end().unwrap();
    let done: Vec<(Node, Log)> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
    assert_eq!(done.iter().map(|(_, log)| log.len()).collect::<Vec<_>>(), [0, 200, 0]);
    let came: Vec<u64> =
        done.iter().zip(before).map(|((node, _), before)| node.stats().counts.bytes_in - before).collect();
    let payload = 200 * SIZE as u64;
    assert!(came[1] >= payload, "node 2 got {} bytes of {payload}", came[1]);
    // Headers, counters and acknowledgements: a few hundred bytes a message at the most.
    assert!(came[2] < payload / 20, "node 3 got {} bytes, and none of {payload} was for it", came[2]);
}

// D12, D13: outcomes are told to the sender, whether it is in the list or not; and say so when nobody is left to have the message.
#[test]
fn outcomes_of_messages_for_some_members_are_told() {
    let mut nodes = found(FabricChoice::Shm, 3, Guarantee::Atomic);
    let third = nodes.pop().unwrap();
    let sender = nodes[0].sender();
    let first = sender.send_to_tracked(&[NodeId(2)], b"first").unwrap().wait().unwrap();
    let second = sender.send_to_tracked(&[NodeId(1), NodeId(3)], b"second").unwrap().wait().unwrap();
    assert_eq!((first.seq.0, second.seq.0), (0, 1));

    assert_eq!(sender.send_to(&[], b"nobody").unwrap_err(), SendError::NoDestination);
    let stranger = sender.send_to(&[NodeId(2), NodeId(9)], b"a stranger").unwrap_err();
    assert_eq!(stranger, SendError::NoSuchMember(NodeId(9)));
    let max = sender.max_len().unwrap();
    assert!(matches!(sender.send_to(&[NodeId(2)], &vec![0; max]), Err(SendError::TooLong { .. })));

    drop(third);
    // Until the view has changed it may be sent, and is delivered or not; then it can't be.
    loop {
        match sender.send_to_tracked(&[NodeId(3)], b"to who is gone") {
            Ok(outcome) => match outcome.wait() {
                Ok(_) | Err(OutcomeError::NoDestination) => {}
                other => panic!("{other:?}"),
            },
            Err(SendError::NoSuchMember(NodeId(3))) => break,
            Err(other) => panic!("{other}"),
        }
    }
    // A list of which some remain goes to those.
    sender.send_to_tracked(&[NodeId(2)], b"still there").unwrap().wait().unwrap();
}

// Where delivery doesn't wait until all have a message, what is for some can't be got back from the others (V3).
#[test]
fn groups_that_do_not_wait_for_stability_take_no_destinations() {
    let nodes = found(FabricChoice::Shm, 2, Guarantee::Agreed);
    assert_eq!(nodes[0].sender().send_to(&[NodeId(2)], b"x").unwrap_err(), SendError::NotAddressable);
}
