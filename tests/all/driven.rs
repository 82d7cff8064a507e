//! Nodes that the application drives.

use std::net::TcpListener;
use std::time::Duration;

use consort::{DrivenNode, FabricChoice, GroupConfig, Incoming, NodeBuilder, SendError, WaitStrategy};

/// Turns, beyond anything a sound run needs.
const TURNS: u32 = 5_000_000;

/// A turn, and whether the view was told in it.
fn turn(node: &mut DrivenNode) -> bool {
    let mut view = false;
    node.poll(&mut |incoming| view |= matches!(incoming, Incoming::View(_))).unwrap();
    view
}

#[test]
fn who_tries_to_send_on_the_driving_thread_sleeps_until_there_may_be_room() {
    for fabric in [FabricChoice::Tcp, FabricChoice::Shm] {
        let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let mut nodes: Vec<_> = (0..2)
            .zip(listeners)
            .map(|(at, listener)| {
                NodeBuilder::new(at + 1)
                    .listener(listener)
                    .peer(2 - at, addresses[1 - at as usize])
                    .fabric(fabric)
                    .wait(WaitStrategy::Block)
                    .ring_bytes(64 << 10)
                    .start_within(Duration::from_secs(60))
                    .driven()
                    .unwrap()
            })
            .collect();
        let mut views = [false; 2];
        for _ in 0..TURNS {
            for (node, view) in nodes.iter_mut().zip(&mut views) {
                *view |= turn(node);
            }
            if views == [true; 2] {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(views, [true; 2], "no view");

        // The other takes nothing, so there is no room sooner or later. From then on there is nothing to do.
        let node = &mut nodes[0];
        let sender = node.sender();
        let (mut full, mut before) = (0, 0);
        for _ in 0..TURNS {
            turn(node);
            match sender.try_reserve(1024) {
                Ok(place) => {
                    place.send();
                    continue;
                }
                Err(SendError::Full) => full += 1,
                Err(error) => panic!("{error}"),
            }
            if full == 1 {
                before = node.stats().counts.sleeps;
            }
            node.wait();
            if node.stats().counts.sleeps >= before + 2 {
                break;
            }
        }
        assert!(full > 0 && node.stats().counts.sleeps >= before + 2, "it turned {full} times for nothing");

        // And it goes on as soon as there is room.
        let mut sent = false;
        for _ in 0..TURNS {
            turn(&mut nodes[1]);
            turn(&mut nodes[0]);
            sent = sent || sender.try_reserve(1024).map(|place| place.send()).is_ok();
            if sent {
                break;
            }
        }
        assert!(sent, "no room, although the other takes what comes");
    }
}

// Groups beside the main one reach who asks for them, and wait while only the main one is asked for.
#[test]
fn groups_are_polled_too() {
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let mut nodes: Vec<_> = (0..2)
        .zip(listeners)
        .map(|(at, listener)| {
            let builder = NodeBuilder::new(at + 1).listener(listener).group(GroupConfig::new("audit"));
            builder.peer(2 - at, addresses[1 - at as usize]).driven().unwrap()
        })
        .collect();
    let (audit, sender) = nodes[0].sender_of("audit", 0).unwrap();
    assert!(nodes[0].sender_of("audit", 1).is_none() && nodes[0].sender_of("nobody", 0).is_none());
    let (mut sent, mut heard) = (false, Vec::new());
    for _ in 0..TURNS {
        let [one, other] = &mut nodes[..] else { panic!("two nodes") };
        turn(one);
        sent = sent
            || sender.try_reserve(3).is_ok_and(|mut room| {
                room.copy_from_slice(b"one");
                room.send();
                true
            });
        other
            .poll_groups(&mut |shard, incoming| {
                if let (true, Incoming::Message(message)) = (shard == audit, incoming) {
                    heard.push(message.payload.to_vec());
                }
            })
            .unwrap();
        if !heard.is_empty() {
            break;
        }
        std::thread::yield_now();
    }
    assert_eq!(heard, [b"one"]);
    // The one that was only asked for the main group's has kept its own copy until now.
    let mut kept = 0;
    for _ in 0..TURNS {
        nodes[0]
            .poll_groups(&mut |shard, incoming| {
                kept += usize::from(shard == audit && matches!(incoming, Incoming::Message(_)));
            })
            .unwrap();
        turn(&mut nodes[1]);
        if kept > 0 {
            break;
        }
    }
    assert_eq!(kept, 1);
}

// One call turns and waits until there is something to tell, and for no longer than it is told to.
#[test]
fn a_node_is_driven_until_something_is_told() {
    let mut node = NodeBuilder::new(1).listen("127.0.0.1:0".parse().unwrap()).driven().unwrap();
    let sender = node.sender();
    let drive = |node: &mut DrivenNode, within| {
        let mut told = String::new();
        let any = node.drive(within, &mut |_, incoming| {
            told.push(match incoming {
                Incoming::View(_) => 'v',
                Incoming::Message(_) => 'm',
                _ => 'o',
            });
        });
        assert_eq!(any.unwrap(), !told.is_empty(), "{told}");
        told
    };
    // Without a bound every call has told something, whatever it had to wait for.
    loop {
        let told = drive(&mut node, Duration::MAX);
        assert_ne!(told, "");
        if told.contains('v') {
            break;
        }
    }
    let (within, began) = (Duration::from_millis(250), std::time::Instant::now());
    assert_eq!(drive(&mut node, within), "", "whoever is alone has nothing more to be told");
    assert!(began.elapsed() >= within, "and it waits for that");
    assert!(node.stats().counts.sleeps > 0, "by sleeping in the end");
    sender.try_reserve(1).unwrap().send();
    assert_eq!(drive(&mut node, Duration::MAX), "m");
    node.close(Duration::from_secs(10), &mut |_| {}).unwrap();
}
